"""The code in the documentation runs and is right."""

import re
from pathlib import Path

import apr

DOCS = Path(__file__).parents[1] / "docs"


def test_the_reader_in_the_format_page_reads_real_files(data: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "format.md").read_text(), re.DOTALL)
    namespace: dict = {}
    exec(code, namespace)
    for name in ("every_dtype", "qwen2_untied_f32"):
        path = data / "aprender-0.72" / f"{name}.apr"
        metadata, tensors = namespace["read"](path)
        file = apr.load(path)
        assert metadata == file.metadata
        assert list(tensors) == list(file)
        for tensor, (_, shape, stored) in tensors.items():
            assert shape == file.info(tensor).shape
            assert stored == file.raw(tensor)
