//! Reads the facts of an experiment.

use std::path::{Path, PathBuf};

use super::file::ExperimentScale;
use crate::{
    Error, Result,
    facts::{self, Fact, ReadOptions},
    progress::Progress,
};

/// The environment variable with the folder of the `EntityQuestions` files (`P17.train.json` ...).
pub const ENTITY_QUESTIONS: &str = "UNFORGET_ENTITY_QUESTIONS";

/// Splits joined relations such as `P17+P36`.
pub(super) fn relations(joined: &str) -> impl Iterator<Item = &str> {
    joined.split('+')
}

/// The relations of a scale whose facts are available; notes list the others.
pub(super) fn available_relations<'s>(
    scale: &'s ExperimentScale,
    progress: &Progress,
) -> Result<Vec<&'s String>> {
    if std::env::var_os(ENTITY_QUESTIONS).is_some() {
        return Ok(scale.relations.iter().collect());
    }
    let pack = read_pack()?;
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for joined in &scale.relations {
        let in_pack = |relation: &&str| pack.iter().any(|fact| fact.relation == *relation);
        match relations(joined).find(|relation| !in_pack(relation)) {
            None => found.push(joined),
            Some(relation) => missing.push(missing_relation(relation)),
        }
    }
    if found.is_empty() && !missing.is_empty() {
        return Err(missing.remove(0));
    }
    for relation in missing {
        progress.note(format_args!("{relation}: skipped"));
    }
    Ok(found)
}

pub(super) fn read_pack() -> Result<Vec<Fact>> {
    Ok(facts::read(&[PathBuf::from(facts::PACK)], ReadOptions::default())?.facts)
}

fn missing_relation(relation: &str) -> Error {
    Error::input_hint(
        format!("the built-in facts contain none of {relation}"),
        format!(
            "download EntityQuestions (https://github.com/princeton-nlp/EntityQuestions) and set {ENTITY_QUESTIONS} to its folder"
        ),
    )
}

/// Reads the facts of `joined` relations to train on and to hold out: from `EntityQuestions` if the environment variable is set, else
/// from the built-in pack.
pub(super) fn read(scale: &ExperimentScale, joined: &str) -> Result<(Vec<Fact>, Vec<Fact>)> {
    let (mut train, mut held) = (Vec::new(), Vec::new());
    for relation in relations(joined) {
        let facts = read_one(scale, relation)?;
        train.extend(facts.0);
        held.extend(facts.1);
    }
    Ok((train, held))
}

fn read_one(scale: &ExperimentScale, relation: &str) -> Result<(Vec<Fact>, Vec<Fact>)> {
    let read =
        |files: &[PathBuf]| Ok::<_, Error>(facts::read(files, ReadOptions::default())?.facts);
    let (mut train, held) = if let Some(folder) = std::env::var_os(ENTITY_QUESTIONS) {
        let file = |part: &str| Path::new(&folder).join(format!("{relation}.{part}.json"));
        let held: Vec<PathBuf> = scale.held_splits.iter().map(|part| file(part)).collect();
        (
            read(&[file("train")])?,
            if held.is_empty() {
                Vec::new()
            } else {
                read(&held)?
            },
        )
    } else {
        let mut pack = read_pack()?;
        pack.retain(|f| f.relation == relation);
        (pack, Vec::new())
    };
    let rest = train.split_off(train.len().min(scale.train_facts));
    let mut held = [held, rest].concat();
    held.truncate(scale.held_facts);
    Ok((train, held))
}
