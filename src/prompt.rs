//! Training examples as token ids: prompt templates for facts, chat templates for chats, and packing into micro-batches.

mod chat;
mod chat_parts;
mod example;
mod jinja;
mod packing;
mod template;

pub use chat::{ChatQuestion, chat_prompt, chat_questions, has_chat_questions, has_chat_template};
pub use chat_parts::ChatParts;
pub use example::{Example, NO_END_NOTE, TextNotes, examples_of_texts, lacks_end, text_examples};
pub use packing::{MICRO_BATCH_TOKENS, PackedExamples, micro_batches, target_offsets};
pub use template::PromptTemplate;
