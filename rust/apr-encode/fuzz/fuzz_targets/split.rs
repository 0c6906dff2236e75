//! Compare the hand-written patterns and merges with the `tokenizers` library, for texts of any characters.
#![no_main]

use std::{fmt::Write, sync::LazyLock};

use apr_encode::{Encoder, Ends, Stored};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use serde_json::{Value, json};
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer};

/// A byte-level tokenizer of 512 tokens, of which only the pre-tokenizer and the normalizer are replaced.
const TOKENIZER: &str = include_str!("../../../../tests/fixtures/imported-0.72/hf_llama_tied/tokenizer.json");

const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What decides where a text is cut: some of each class, beside what the patterns name.
const COMMON: [&str; 32] = [
    "a", "s", "ll", "re", "E", "S", "É", "é", "中", "ʰ", "ǅ", "\u{301}", "\u{308}", "ſ", "1", "٣", "½", "'",
    "/", ".", "_", "\u{200d}", "😀", " ", "  ", "\t", "\n", "\r", "\u{a0}", "\u{3000}", "\u{85}", "abcdefgh",
];

#[derive(Debug, Arbitrary)]
enum Piece {
    /// One of `COMMON`, up to sixteen times.
    Common(u8, u8),
    Char(char),
    /// Characters that have neighbors of the same block.
    Near(u32),
}

#[derive(Debug, Arbitrary)]
struct Input {
    kind: u8,
    nfc: bool,
    pieces: Vec<Piece>,
}

/// Our encoder and the library's tokenizer, for each kind of pre-tokenizer, without and with NFC.
static BOTH: LazyLock<Vec<[(Encoder, Tokenizer); 2]>> = LazyLock::new(|| {
    let byte_level = |regex| {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex})
    };
    let sequence = |first: Value, regex| {
        let all = [first, byte_level(regex)];
        json!({"type": "Sequence", "pretokenizers": all})
    };
    let split = |pattern| {
        let regex = json!({"Regex": pattern});
        sequence(json!({"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": false}), false)
    };
    let digits = sequence(json!({"type": "Digits", "individual_digits": true}), true);
    let kinds = [byte_level(true), digits, split(QWEN2), split(QWEN35), split(CL100K), split(O200K)];
    let both = |pre_tokenizer: &Value, normalizer: Value| {
        let mut spec: Value = serde_json::from_str(TOKENIZER).unwrap();
        spec["pre_tokenizer"] = pre_tokenizer.clone();
        spec["normalizer"] = normalizer;
        let text = spec.to_string();
        let encoder = Encoder::new(&text, 1, false).unwrap();
        assert!(encoder.is_fast());
        let mut library: Tokenizer = text.parse().unwrap();
        library.set_encode_special_tokens(true);
        (encoder, library)
    };
    kinds.iter().map(|kind| [both(kind, Value::Null), both(kind, json!({"type": "NFC"}))]).collect()
});

fuzz_target!(|input: Input| {
    let mut text = String::new();
    for piece in &input.pieces {
        match piece {
            Piece::Common(which, times) => {
                text.push_str(&COMMON[usize::from(which % 32)].repeat(usize::from(times % 16) + 1));
            }
            Piece::Char(c) => text.push(*c),
            Piece::Near(code) => write!(text, "{}", char::from_u32(code % 0x3_0000).unwrap_or(' ')).unwrap(),
        }
    }
    let (encoder, library) = &BOTH[usize::from(input.kind) % BOTH.len()][usize::from(input.nfc)];
    if !input.nfc {
        let mut split = PreTokenizedString::from(text.as_str());
        library.get_pre_tokenizer().unwrap().pre_tokenize(&mut split).unwrap();
        let pieces = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let expected: Vec<&str> = pieces.iter().map(|(_, (start, end), _)| &text[*start..*end]).collect();
        assert_eq!(encoder.pieces(&text).unwrap(), expected);
    }
    let encoded = encoder.encode(&[Stored::Text(&text)], Ends::default()).unwrap();
    let expected = library.encode_fast(text.as_str(), false).unwrap();
    assert_eq!(encoded.ids.concat(), expected.get_ids());
});
