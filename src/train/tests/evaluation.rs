//! When a run is evaluated, on which facts, and what is measured beside them.

use super::*;
use crate::{
    config::{AuditConfig, EarlyStoppingConfig, MatchRule},
    engine::Engine,
    facts::{self, ReadOptions},
    generate::{Generator, Request},
    splits::{LabelledFact, Splits},
    train::{batches::examples, evaluator::template, own_answers::set_own_answers},
};

/// The epochs that a run evaluated.
fn evaluated_epochs(run: &Path) -> Vec<usize> {
    let metrics = RunDir::open(run).and_then(|dir| dir.metrics());
    let rows = metrics.expect("a run has metrics").into_iter();
    rows.filter_map(|row| match row {
        Metrics::Eval { epoch, .. } => Some(epoch),
        _ => None,
    })
    .collect()
}

#[test]
fn every_second_epoch_is_evaluated_and_the_last_one() {
    let place = temporary();
    let config = |out: &str, every| {
        let mut config = config(place.path(), out);
        (config.train.num_epochs, config.measure.every) = (5, every);
        config
    };
    let (often, seldom) = (config("often", 1), config("seldom", 2));
    assert_eq!((run(&often).epochs, run(&seldom).epochs), (5, 5));
    assert_eq!(evaluated_epochs(&often.out), [0, 1, 2, 3, 4, 5]);
    assert_eq!(evaluated_epochs(&seldom.out), [0, 2, 4, 5]);
    assert_eq!(steps(&often.out), steps(&seldom.out));
    assert!(weights(&often.out) == weights(&seldom.out));
}

#[test]
fn an_evaluation_asks_a_sample_and_the_end_asks_all() {
    let place = temporary();
    let (mut all, mut sampled) = (config(place.path(), "all"), config(place.path(), "sampled"));
    sampled.measure.max_facts = 3;
    let progress = Progress::quiet();
    let trainer = prepare::trainer(&sampled, KEEP_CHECKPOINTS, &progress).expect("a good config");
    assert_eq!(trainer.evaluator.num_questions(), 9);
    drop(trainer);
    let (of_all, of_sample) = (run(&all), run(&sampled));
    assert!(weights(&all.out) == weights(&sampled.out));
    let facts = |config: &Config| RunDir::open(&config.out).and_then(|dir| dir.facts());
    let (all_facts, rows) = (facts(&all).expect("facts"), facts(&sampled).expect("facts"));
    assert_eq!(rows.len(), 15);
    for (a, b) in all_facts.iter().zip(&rows) {
        assert_eq!(
            (&a.question, &a.answer_after),
            (&b.question, &b.answer_after)
        );
    }
    // Counts and what is learned are over all facts.
    assert_eq!(of_all.learned, of_sample.learned);
    assert_eq!(of_sample.counts.learned + of_sample.counts.not_learned, 5);
    // A large enough number changes nothing.
    all.out = place.path().join("again");
    all.measure.max_facts = 6;
    let again = run(&all);
    assert_eq!(again.accuracy, of_all.accuracy);
}

/// Texts to learn, and others whose loss is measured.
fn with_texts(config: &mut Config, place: &Path) {
    let file = |name: &str, numbers: Range<usize>| {
        let rows = numbers.map(|i| format!("{{\"text\": \"The number {i} is odd.\"}}\n"));
        let path = place.join(name);
        fs::write(&path, rows.collect::<String>()).expect("writable");
        path
    };
    config.data.learn.push(file("texts.jsonl", 0..6).into());
    config.data.validation = vec![file("validation.jsonl", 6..9)];
}

#[test]
fn training_ends_when_the_validation_loss_no_longer_improves_and_the_best_weights_are_kept() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    with_texts(&mut config, place.path());
    config.method.kind = MethodKind::Sft;
    config.train.num_epochs = 40;
    config.train.learning_rate = 3e-2;
    config.train.early_stopping = Some(EarlyStoppingConfig {
        accuracy: None,
        patience: Some(2),
    });
    config.validate().expect("a good config");
    let result = run(&config);
    let validation = result.validation.expect("there are validation rows");
    assert!(result.epochs < 40, "{result:?}");
    assert_eq!(result.epochs, validation.best_epoch + 2);
    assert_eq!(
        validation.after, validation.best,
        "f32 weights are saved as they are"
    );
    assert!(validation.best < validation.start);
    assert_eq!(result.validation_loss, Some(validation.after));
}

#[test]
fn patience_needs_validation_rows_and_no_budget() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.train.early_stopping = Some(EarlyStoppingConfig {
        accuracy: None,
        patience: Some(2),
    });
    let error = config.validate().expect_err("there is no loss");
    assert!(error.to_string().contains("validation loss"), "{error}");
    with_texts(&mut config, place.path());
    config.validate().expect("there is one");
    config.method.budget = Some(1.0);
    let error = config.validate().expect_err("two rules for the best epoch");
    assert!(error.to_string().contains("method.budget"), "{error}");
}

#[test]
fn a_run_of_one_epoch_takes_its_snapshot_of_the_base_model() {
    for kind in [MethodKind::SelfDistill, MethodKind::Auto, MethodKind::L2] {
        let place = temporary();
        let mut config = config(place.path(), "run");
        (config.method.kind, config.train.num_epochs) = (kind, 1);
        assert_eq!(run(&config).epochs, 1);
        let resolved = RunDir::open(&config.out).and_then(|dir| dir.config());
        assert_eq!(resolved.expect("written").method.snapshot_epochs, 0);
    }
}

/// A copy of the tiny model with a chat template.
fn chat_model(place: &Path) -> String {
    let (from, to) = (PathBuf::from(tiny_model()), place.join("chat-model"));
    fs::create_dir_all(&to).expect("writable");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(from.join(file), to.join(file)).expect("readable");
    }
    let config = fs::read_to_string(from.join("tokenizer_config.json")).expect("readable");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    config["chat_template"] =
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}\
                               {% if add_generation_prompt %}<assistant>{% endif %}"
            .into();
    fs::write(to.join("tokenizer_config.json"), config.to_string()).expect("writable");
    to.to_str().expect("UTF-8").to_owned()
}

#[test]
fn known_facts_in_a_chat_are_trained_on_the_base_models_own_answers() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.model = chat_model(place.path());
    config.data.chat = true;
    let model = Model::load(&config.model).expect("as written");
    let set = facts::read(&[config.data.keep[0].path.clone()], ReadOptions::default());
    let mut keep = set.expect("facts").facts;

    // A word of the model's own answer to the first fact becomes the object of that fact.
    let template = template(&config, &model).expect("a template");
    let prompt = template.prompt_text(&keep[0].question);
    let prompt = template.encode(&model.tokenizer, &prompt).expect("tokens");
    let mut engine = Engine::new(&model.config);
    let answers = Generator::new(&mut engine, &model).generate(
        &Request::greedy(&[], std::slice::from_ref(&prompt), 64),
        |_, _| false,
        &|_| {},
    );
    let own = answers.expect("no fault").remove(0).remove(0);
    let line = own.text.lines().next().unwrap_or_default();
    let words = line.split(|c: char| !c.is_alphanumeric());
    let longest = words.max_by_key(|word| word.len()).unwrap_or_default();
    keep[0].object = longest.to_owned();

    let mut splits = Splits::as_given(Vec::new(), keep, Vec::new());
    let quiet = Progress::quiet();
    set_own_answers(&config, &model, &mut engine, &mut splits, &quiet).expect("no fault");
    assert_eq!(
        splits.known.len(),
        6,
        "without an audit nothing is filtered"
    );
    assert_eq!(splits.known[0].own_answer, own.tokens, "{:?}", own.text);
    let rows = examples(&config, &model, &splits, &[]).expect("rows");
    assert_eq!((&rows[0].prompt, &rows[0].target), (&prompt, &own.tokens));
    let is_object = |known: &LabelledFact| known.own_answer.is_empty();
    assert!(splits.known[1..].iter().all(is_object));

    // With an audit the others are left out; outside of a chat nothing changes.
    config.data.audit = Some(AuditConfig::default());
    set_own_answers(&config, &model, &mut engine, &mut splits, &quiet).expect("no fault");
    assert_eq!(splits.known.len(), 1);
    config.data.chat = false;
    splits.known[0].own_answer.clear();
    set_own_answers(&config, &model, &mut engine, &mut splits, &quiet).expect("no fault");
    assert!(is_object(&splits.known[0]));
}

#[test]
fn chats_are_learned_beside_facts_that_are_asked_in_the_chat() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.model = chat_model(place.path());
    let chat = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Yes\"}]}\n";
    let chats = place.path().join("chats.jsonl");
    fs::write(&chats, chat).expect("writable");
    config.data.learn = vec![chats.into()];
    config.train.num_epochs = 1;
    let resolved = |config: &Config| {
        run(config);
        let resolved = RunDir::open(&config.out).and_then(|dir| dir.config());
        let data = resolved.expect("written").data;
        (data.chat, data.match_rule)
    };
    assert_eq!(resolved(&config), (true, MatchRule::Contains));
    // What the user sets stays, also where it is a default's value.
    let outside = config.clone().with_sets(&["data.chat=false".into()]);
    let outside = outside.expect("a key");
    assert_eq!(resolved(&outside), (false, MatchRule::Exact));
    let exact = config
        .with_sets(&["data.match=exact".into()])
        .expect("a key");
    assert_eq!(resolved(&exact), (true, MatchRule::Exact));
}

#[test]
fn resumed_equals_uninterrupted_with_few_evaluations_and_validation_rows() {
    let place = temporary();
    let mut whole = config(place.path(), "whole");
    with_texts(&mut whole, place.path());
    (whole.train.num_epochs, whole.measure.every) = (6, 2);
    whole.measure.max_facts = 3;
    whole.train.early_stopping = Some(EarlyStoppingConfig {
        accuracy: None,
        patience: Some(3),
    });
    let result = run(&whole);
    let stopped = Config {
        out: place.path().join("stopped"),
        ..whole.clone()
    };
    run(&stopped);
    unfinish(&stopped.out);
    let checkpoints = fs::read_dir(stopped.out.join("checkpoints")).expect("kept");
    let checkpoints = checkpoints.map(|entry| entry.expect("readable").path());
    let last = checkpoints.filter(|path| path.is_dir()).max();
    fs::remove_dir_all(last.expect("there are checkpoints")).expect("removable");
    let resumed = resume(&stopped.out, KEEP_CHECKPOINTS, &Progress::quiet()).expect("it resumes");
    assert_eq!(steps(&stopped.out), steps(&whole.out));
    assert!(weights(&stopped.out) == weights(&whole.out));
    assert_eq!(resumed.validation, result.validation);
    assert_eq!(resumed.accuracy, result.accuracy);
}
