//! The hand-written patterns against those of the library, with which every id begins.

use apr_encode::Encoder;
use serde_json::{Value, json};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer};

const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn byte_level(regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex})
}

fn split(pattern: &str) -> Value {
    let split =
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
}

/// Each kind of pre-tokenizer, with its name.
fn kinds() -> Vec<(&'static str, Value)> {
    let digits = json!({"type": "Digits", "individual_digits": true});
    vec![
        ("gpt-2", byte_level(true)),
        ("smollm", json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]})),
        ("qwen2", split(QWEN2)),
        ("qwen3.5", split(QWEN35)),
        ("cl100k", split(CL100K)),
        ("o200k", split(O200K)),
    ]
}

/// Our encoder and the library's tokenizer.
fn both(pre_tokenizer: &Value) -> (Encoder, Tokenizer) {
    let json = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer,
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    })
    .to_string();
    (Encoder::new(&json, 1, false).unwrap(), json.parse().unwrap())
}

fn check(name: &str, (encoder, library): &(Encoder, Tokenizer), text: &str) {
    let mut split = PreTokenizedString::from(text);
    library.get_pre_tokenizer().unwrap().pre_tokenize(&mut split).unwrap();
    let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let expected: Vec<&str> = splits.into_iter().map(|(_, (start, end), _)| &text[start..end]).collect();
    assert_eq!(encoder.pieces(text).unwrap(), expected, "{name}: {text:?}");
}

#[test]
fn characters_of_every_block_are_split_as_the_library_does() {
    for (name, pre_tokenizer) in kinds() {
        let both = both(&pre_tokenizer);
        // All of them are compared by id in tests/data/test_encoder.py.
        let wide = ('\u{500}'..=char::MAX).step_by(97);
        for c in ('\0'..'\u{500}').chain(wide) {
            check(name, &both, &format!("a{c}b 1{c}2 {c} !{c}. {c}{c}x\n{c}'{c}A{c}A{c}\n {c}/\u{301}{c}s"));
        }
    }
}

/// What decides where a text is cut: one of each class, beside what the patterns name.
const ALPHABET: [&str; 33] = [
    "a",
    "s",
    "ll",
    "e",
    "D",
    "S",
    "É",
    "é",
    "中",
    "ʰ",
    "ǅ",
    "\u{301}",
    "\u{308}",
    "ſ",
    "1",
    "٣",
    "½",
    "'",
    "'",
    "/",
    ".",
    "_",
    "\u{200d}",
    "😀",
    " ",
    " ",
    "\t",
    "\n",
    "\r",
    "\u{a0}",
    "\u{3000}",
    "\u{85}",
    "\u{11DE0}",
];

#[test]
fn random_texts_are_split_as_the_library_does() {
    let mut random = 42_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % below
    };
    for (name, pre_tokenizer) in kinds() {
        let both = both(&pre_tokenizer);
        for _ in 0..20_000 {
            let text: String = (0..next(24)).map(|_| ALPHABET[next(ALPHABET.len())]).collect();
            check(name, &both, &text);
        }
    }
}

#[test]
fn patterns_that_differ_in_one_character_have_no_fast_path() {
    for pattern in [&CL100K[1..], &O200K.replace("{1,3}", "{1,4}"), &QWEN2.replace("|'d", "")] {
        let json =
            json!({"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": split(pattern)});
        // The first one is not a pattern at all.
        if let Ok(encoder) = Encoder::new(&json.to_string(), 1, false) {
            assert!(!encoder.is_fast(), "{pattern}");
        }
    }
}
