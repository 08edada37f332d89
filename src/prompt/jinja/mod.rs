//! Jinja for chat templates, which renders as `jinja2` does in `transformers`: with Python's values, text, methods and errors.
//!
//! Template engines of Rust print `true`, `none` and floats in their own way, sort dicts, and have other methods, so what a model is
//! trained on would differ from what it is asked with. This one is small: no inheritance, no files, no clock, limited work.
//!
//! From bottom to top: `fault`, `value`, `call`, `ast`; `lexer` and `parser`; `lookup`, `text_format`, `ops`, `strings`, `methods`,
//! `json`; `checks` and `filters`; `objects`, `date` and `eval`.

mod ast;
mod call;
mod checks;
mod date;
mod eval;
mod fault;
mod filters;
mod json;
mod lexer;
mod lookup;
mod methods;
mod objects;
mod ops;
mod parser;
mod strings;
#[cfg(test)]
mod tests;
mod text_format;
mod value;

pub(super) use eval::Rendered;
pub(super) use fault::{Fault, FaultKind};
pub(super) use value::Value;

/// A parsed template.
pub(super) struct Template {
    body: ast::Body,
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// When it is not Jinja, or uses what this one does not have.
    pub(super) fn parse(source: &str) -> Result<Self, Fault> {
        parser::parse(source).map(|body| Self { body })
    }

    /// Renders it with variables.
    ///
    /// # Errors
    /// Those that `jinja2` raises, and when it takes too long.
    pub(super) fn render(&self, variables: Vec<(&str, Value)>) -> Result<Rendered, Fault> {
        eval::render(&self.body, variables)
    }
}
