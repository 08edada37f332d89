//! The pre-tokenizers of byte-level BPE by llama.cpp's names (`tokenizer.ggml.pre`), as steps of a `tokenizer.json`.

use serde_json::{Value, json};

/// llama.cpp's names of the pre-tokenizers that can be written, without synonyms: the first that fits is taken.
pub(super) const PRE_TOKENIZERS: [&str; 11] = [
    "gpt-2",
    "smollm",
    "llama-bpe",
    "qwen2",
    "deepseek-r1-qwen",
    "smaug-bpe",
    "tekken",
    "gpt-4o",
    "deepseek-v3",
    "deepseek-coder",
    "falcon",
];

/// The pre-tokenizer of a byte-level BPE, which splits text into words.
pub(super) struct PreTokenizer {
    pub(super) normalizer: Value,
    steps: Vec<Value>,
    /// A word in the vocabulary is one token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with BOS if the file does not say.
    pub(super) add_bos: bool,
}

/// English contractions, in any case.
const CONTRACTIONS: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";

/// GPT-2's words without the spaces at the end of a text.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// A step that makes every match of `pattern` a word of its own, and what stands between two matches another.
fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

/// The last step, which maps bytes to the characters of the vocabulary.
fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// Words of letters with one character in front, numbers as `digits` matches them, signs with line breaks behind them, white space.
fn words(digits: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// As [`words`], where a word also ends before a capital; `suffix` may follow a word.
fn cased_words(suffix: &str, digits: &str) -> String {
    let (upper, lower) = (r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])");
    let start = r"[^\r\n\p{L}\p{N}]?";
    format!(
        r"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

impl PreTokenizer {
    /// The pre-tokenizer with this name in llama.cpp; the rules are llama.cpp's.
    pub(super) fn named(name: &str) -> Option<Self> {
        let plain = |steps: Vec<Value>| Self {
            normalizer: Value::Null,
            steps,
            ignore_merges: false,
            add_bos: false,
        };
        let splits = |patterns: &[&str]| {
            let steps = patterns.iter().map(|pattern| split(pattern));
            plain(steps.chain([byte_level(false)]).collect())
        };
        Some(match name {
            "default" => splits(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
            "gpt-2" | "gpt2" | "phi-2" | "olmo" | "mpt" | "jais" | "exaone4" | "gigachat"
            | "mellum" | "a.x-4.0" | "trillion" | "granite-docling" => {
                plain(vec![byte_level(true)])
            }
            "smollm" | "starcoder" | "refact" | "codeshell" | "command-r" | "exaone"
            | "minerva-7b" => plain(vec![
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ]),
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral"
            | "midm-2.0" | "lfm2" => Self {
                ignore_merges: true,
                add_bos: true,
                ..splits(&[&words(r"\p{N}{1,3}")])
            },
            "smaug-bpe" | "dbrx" | "glm4" | "chatglm-bpe" => splits(&[&words(r"\p{N}{1,3}")]),
            "qwen2" => Self {
                // As the models' own tokenizers; llama.cpp leaves the text as it is.
                normalizer: json!({"type": "NFC"}),
                ..splits(&[&words(r"\p{N}")])
            },
            "deepseek-r1-qwen" | "kormo" | "megrez" | "stablelm2" | "hunyuan" => {
                splits(&[&words(r"\p{N}")])
            }
            "tekken" => Self {
                ignore_merges: true,
                add_bos: true,
                ..splits(&[&cased_words("", r"\p{N}")])
            },
            "gpt-4o" | "llama4" | "kanana2" => {
                let suffix = format!("{CONTRACTIONS}?");
                splits(&[&cased_words(&suffix, r"\p{N}{1,3}")])
            }
            "deepseek-v3" | "hunyuan-dense" => splits(&[
                r"\p{N}{1,3}",
                "[一-龥\u{3040}-ゟ゠-ヿ]+",
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
            ]),
            "deepseek-coder" => splits(&[
                "[\r\n]",
                r"\s?\p{L}+",
                r"\s?\p{P}+",
                "[一-龥ࠀ-一가-\u{d7ff}]+",
                r"\p{N}",
            ]),
            "falcon" => splits(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
            "seed-coder" => {
                let pattern = format!(
                    r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
                );
                splits(&[&pattern])
            }
            _ => return None,
        })
    }

    /// Its form in `tokenizer.json`.
    pub(super) fn json(&self) -> Value {
        match &self.steps[..] {
            [only] => only.clone(),
            steps => json!({"type": "Sequence", "pretokenizers": steps}),
        }
    }
}
