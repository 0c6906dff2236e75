"""Chat templates: the text that a model was trained to see for the messages of a conversation."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from apr.container.metadata import HF_TOKENIZER
from apr.errors import RefusedError
from apr.gguf.names import SPECIAL_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike


def chat_template(metadata: Mapping[str, Any]) -> str | None:
    """Return a model's chat template, or None if its metadata have none.

    Args:
        metadata: of an .apr file. The key `chat_template` comes first, so that `apr stamp` can replace what
            the tokenizer's files say.
    """
    files = _files(metadata)
    configured = _config(metadata).get("chat_template")
    if isinstance(configured, list):
        # A model with several templates lists them by name.
        named = {entry.get("name"): entry.get("template") for entry in configured if isinstance(entry, dict)}
        configured = named.get("default")
    candidates = (metadata.get("chat_template"), files.get("chat_template.jinja"), configured)
    return next((text for text in candidates if isinstance(text, str)), None)


def special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens that templates may name, such as `bos_token`."""
    tokens = metadata.get("tokenizer.vocabulary")
    found: dict[str, str] = {}
    for name, stem in SPECIAL_TOKENS.items():
        id_ = metadata.get(f"tokenizer.{stem}_token_id")
        if isinstance(tokens, list) and type(id_) is int and 0 <= id_ < len(tokens):
            found[name] = str(tokens[id_])
    for source in (_json(_files(metadata).get("special_tokens_map.json")), _config(metadata)):
        for name in SPECIAL_TOKENS:
            value = source.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                found[name] = value
    return found


def render_chat(
    path: str | PathLike[str], metadata: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]
) -> str:
    """Return the text of messages, with the header of the model's answer at the end.

    The template runs in jinja's sandbox, with the functions that transformers gives it.

    Args:
        path: the file, as an error names it.
        metadata: the metadata of the file.
        messages: each with `role` and `content`.

    Raises:
        RefusedError: the file has no template, or its template cannot render these messages.
    """
    template = chat_template(metadata)
    if template is None:
        raise RefusedError(
            f"{path}: contains no chat template; leave out --chat, or add one with apr stamp {path} "
            "chat_template=…",
            path=path,
        )
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _namespace_class()
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **special_tokens(metadata),
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # A template is a program of the file's author: it may fail in any of Python's ways.
        raise RefusedError(
            f"{path}: the chat template cannot render the messages: {error}", path=path
        ) from None


def _to_json(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 (templates pass them by position)
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    # jinja's own filter escapes characters of HTML, which no model was trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _now(form: str) -> str:
    # Local time, as transformers has it.
    return datetime.now().strftime(form)  # noqa: DTZ005


class _Dict:
    """`dict` for templates, without the attributes of Python's class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:  # noqa: ANN401
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:  # noqa: ANN401
        return dict.fromkeys(*args)


def _namespace_class() -> type:
    """Return `namespace` for templates, which stores no names that begin with an underscore.

    jinja looks attributes up in it before its sandbox sees them (transformers' `TemplateNamespace`).
    """
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    class Public(Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (a template may pass `self`)
            self, *rest = args
            values = dict(*rest, **kwargs)
            for name in values:
                Public._check(name)
            Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401
            Public._check(name)
            super().__setitem__(name, value)

        @staticmethod
        def _check(name: object) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise SecurityError(f"a template must not store {name!r} in a namespace")

    return Public


def _generation_tag() -> type:
    """Return the extension for `{% generation %}`, which marks answers in training and prints its body."""
    from jinja2.ext import Extension
    from jinja2.nodes import Scope

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

        def parse(self, parser: Any) -> Any:  # noqa: ANN401 (jinja's parser and nodes)
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return Scope(body).set_lineno(line)

    return Generation


def _files(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    files = metadata.get(HF_TOKENIZER)
    return files if isinstance(files, dict) else {}


def _config(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    return _json(_files(metadata).get("tokenizer_config.json"))


def _json(text: object) -> Mapping[str, Any]:
    if not isinstance(text, str):
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}  # `load_tokenizer` says that it is not valid
    return value if isinstance(value, dict) else {}
