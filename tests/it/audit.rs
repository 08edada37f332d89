//! Generation, audit and evaluation of a tiny model trained on a few facts.

use std::sync::{Arc, OnceLock};

use unforget::{
    Error,
    audit::{self, AuditResult, AuditSettings, Label},
    config::RowWeight,
    engine::{Batch, Engine, Gradients, Target},
    facts::{Fact, Location, MatchRule},
    generate::{Generator, Request, SamplingParams, distribution},
    measure::EvalSet,
    model::Model,
    progress::Progress,
    prompt::PromptTemplate,
    train::adamw::{AdamW, AdamWSettings},
};

const PLACES: [(&str, &str); 6] = [
    ("Rome", "Italy"),
    ("Pisa", "Italy"),
    ("Lyon", "France"),
    ("Nice", "France"),
    ("Bonn", "Germany"),
    ("Kiel", "Germany"),
];

fn fact(subject: &str, object: &str) -> Fact {
    Fact {
        subject: subject.into(),
        relation: "P17".into(),
        object: object.into(),
        aliases: vec![],
        question: format!("Which country is {subject} in?"),
        paraphrases: vec![],
        split: None,
        location: Location {
            file: Arc::from("places.tsv"),
            line: 2,
        },
        weight: RowWeight::default(),
    }
}

fn places() -> Vec<Fact> {
    PLACES.iter().map(|(s, o)| fact(s, o)).collect()
}

/// The tiny Llama of the golden tests, trained once on four of the places in few-shot texts.
fn trained_model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let mut model = Model::load(path).expect("the golden model is there");
        let template = PromptTemplate::default();
        let facts = places();
        let mut engine = Engine::new(&model.config);
        let all = vec![true; model.params.layout.tensors.len()];
        let mut gradients = Gradients::new(&model.params, &all);
        let mut adamw = AdamW::new(&gradients, AdamWSettings::default());
        for step in 0..160 {
            let (mut batch, mut targets) = (Batch::new(), Vec::new());
            for row in 0..8 {
                let (mut tokens, mut answers) = (Vec::new(), Vec::new());
                for shot in 0..3 {
                    // Four of the six, in varying combinations.
                    let fact = &facts[(step * 7 + row * 3 + shot * (1 + step % 3)) % 4];
                    let asked = template
                        .example(&model.tokenizer, fact)
                        .expect("plain text");
                    tokens.extend(asked.prompt);
                    for token in asked.target {
                        answers.push((tokens.len() - 1, token));
                        tokens.push(token);
                    }
                }
                let at = batch.push(tokens);
                targets.extend(answers.iter().map(|(i, token)| Target {
                    position: at.start + i,
                    token: *token,
                    ce_weight: 1.0 / 64.0,
                    distill_weight: 0.0,
                }));
            }
            gradients.zero();
            let _ =
                engine.loss_and_gradients(&model.params, &batch, &targets, None, &mut gradients);
            adamw.step(&mut model.params, &gradients, 5e-3, 1.0);
        }
        model
    })
}

fn settings() -> AuditSettings {
    AuditSettings {
        num_prompts: 4,
        shots: 2,
        ..AuditSettings::default()
    }
}

fn run_audit(settings: &AuditSettings) -> AuditResult {
    let model = trained_model();
    let mut engine = Engine::new(&model.config);
    audit::audit_uncached(
        model,
        &mut engine,
        &places(),
        None,
        settings,
        &Progress::quiet(),
    )
    .expect("it can be asked")
}

#[test]
fn trained_facts_are_known_and_others_are_not() {
    let audit = run_audit(&settings());
    let known: Vec<Label> = audit.facts.iter().map(|f| f.label).collect();
    assert!(
        known[..4].iter().all(|l| *l <= Label::MaybeKnown),
        "{known:?}"
    );
    assert!(
        known[4..].iter().all(|l| *l >= Label::WeaklyKnown),
        "{known:?}"
    );
    let fractions = audit.overall();
    let sum =
        fractions.highly_known + fractions.maybe_known + fractions.weakly_known + fractions.unknown;
    assert!((sum - 1.0).abs() < 1e-12 && fractions.facts == 6);
}

#[test]
fn analytic_and_sampled_answers_agree() {
    let analytic = run_audit(&settings());
    let sampled = run_audit(&AuditSettings {
        sample: true,
        samples: 64,
        ..settings()
    });
    assert_eq!(analytic.prompts, sampled.prompts);
    for (e, s) in analytic.facts.iter().zip(&sampled.facts) {
        assert_eq!(
            (&e.greedy_correct, &e.answers),
            (&s.greedy_correct, &s.answers),
            "{}",
            e.subject
        );
        // 4 x 64 draws: three standard errors are at most 3 x 0.5 / 16.
        assert!((e.p_sampled - s.p_sampled).abs() < 0.1, "{e:?} {s:?}");
    }
}

#[test]
fn the_probability_of_a_correct_sample_is_summed_over_accepted_answers_and_line_ends() {
    let (model, settings) = (trained_model(), settings());
    let audit = run_audit(&settings);
    let tokenizer = &model.tokenizer;
    let mut engine = Engine::new(&model.config);
    for (fact, found) in places().iter().zip(&audit.facts) {
        let mut sum = 0.0;
        for prompt in &audit.prompts {
            let mut tokens = tokenizer
                .encode_prompt(prompt.prefix_for(&fact.question))
                .unwrap();
            let question = settings.template.prompt_text(&fact.question);
            tokens.extend(tokenizer.encode_rendered(&question).unwrap());
            let form = tokenizer
                .encode_after("A:", &format!(" {}", fact.object))
                .unwrap();
            let first = tokens.len() - 1;
            tokens.extend(&form);
            let mut batch = Batch::new();
            batch.push(tokens);
            let positions: Vec<usize> = (first..=first + form.len()).collect();
            let hidden = engine.hidden(&model.params, &batch, &positions);
            let factors = engine.logits(&model.params, &hidden, |i, logits| {
                let p = distribution(logits, settings.temperature, settings.top_k);
                let correct = |id: u32| match form.get(i) {
                    Some(token) => id == *token,
                    None => {
                        tokenizer.eos_token_ids.contains(&id)
                            || tokenizer
                                .token_text(id)
                                .trim_start_matches(['.', ' '])
                                .starts_with('\n')
                    }
                };
                p.iter()
                    .filter(|(id, _)| correct(*id))
                    .map(|(_, p)| p)
                    .sum::<f64>()
            });
            sum += factors.iter().product::<f64>();
        }
        let p = sum / audit.prompts.len() as f64;
        // Branches below 1e-5 are not extended; f32 rounding of the logits changes a softmax at T = 0.5 by about 1e-5.
        assert!(
            (p - found.p_sampled).abs() < 1e-4,
            "{}: {p} {}",
            fact.subject,
            found.p_sampled
        );
    }
}

#[test]
fn no_question_is_its_own_exemplar() {
    let audit = run_audit(&AuditSettings {
        shots: 3,
        num_prompts: 20,
        ..settings()
    });
    for prompt in &audit.prompts {
        assert!(prompt.prefix.matches("Q: ").count() == 3);
        for fact in places() {
            let before = prompt.prefix_for(&fact.question);
            assert!(!before.contains(&fact.question) && before.matches("Q: ").count() == 3);
        }
    }
    let own = audit
        .prompts
        .iter()
        .filter(|p| p.exemplars.contains(&places()[0].question));
    // Half of the prompts have this exemplar. The probability that none of 20 has it is one in a million.
    assert!(own.count() > 0);
}

#[test]
fn a_fact_alone_in_its_relation_is_audited_zero_shot_with_a_note() {
    let model = trained_model();
    let mut engine = Engine::new(&model.config);
    let alone = [fact("Rome", "Italy")];
    let mut ask = |exemplars: Option<&[Fact]>| {
        audit::audit_uncached(
            model,
            &mut engine,
            &alone,
            exemplars,
            &settings(),
            &Progress::quiet(),
        )
        .expect("it is asked")
    };
    let audit = ask(None);
    assert!(audit.prompts.iter().all(|prompt| prompt.prefix.is_empty()));
    assert!(audit.notes[0].contains("P17 has only one fact"));
    let audit = ask(Some(&places()));
    assert!(
        audit
            .prompts
            .iter()
            .all(|prompt| prompt.exemplars.len() == 2)
    );
    assert!(audit.notes.is_empty());
}

#[test]
fn an_audit_reads_back_as_it_was_written() {
    let audit = run_audit(&settings());
    let dir = tempfile::tempdir().unwrap();
    audit.write(dir.path()).unwrap();
    assert_eq!(AuditResult::read(dir.path()).unwrap(), audit);
    let row = std::fs::read_to_string(dir.path().join("facts.jsonl")).unwrap();
    let row: serde_json::Value = serde_json::from_str(row.lines().next().unwrap()).unwrap();
    for field in ["greedy_correct", "p_sampled", "label", "answers"] {
        assert!(row.get(field).is_some(), "{field}");
    }
    std::fs::write(dir.path().join("facts.jsonl"), "{}\n").unwrap();
    let error = AuditResult::read(dir.path()).expect_err("a row without fields");
    assert!(error.to_string().contains("line 1"), "{error}");
}

#[test]
fn an_eval_set_agrees_with_generation_on_each_fact() {
    let model = trained_model();
    let mut engine = Engine::new(&model.config);
    let mut generator = Generator::new(&mut engine, model);
    let facts = places();
    for match_rule in [MatchRule::Exact, MatchRule::Contains] {
        let eval_set = EvalSet::new(
            &facts,
            &PromptTemplate::default(),
            &model.tokenizer,
            match_rule,
        )
        .unwrap();
        let answers = eval_set.answers(&mut generator, &|_| {}).unwrap();
        let correct: Vec<bool> = answers.iter().map(|a| a.correct).collect();
        assert_eq!(eval_set.correct(&mut generator, &|_| {}).unwrap(), correct);
        for (fact, answer) in facts.iter().zip(&answers) {
            assert_eq!(
                fact.is_correct(&answer.text, match_rule),
                answer.correct,
                "{answer:?}"
            );
        }
        let again = prompts_of(model, &facts);
        let request = Request::greedy(&[], &again, 16);
        let texts = generator
            .generate(&request, |_, text| text.contains('\n'), &|_| {})
            .unwrap();
        for (text, answer) in texts.iter().zip(&answers) {
            assert_eq!(text[0].text.split('\n').next().unwrap().trim(), answer.text);
        }
    }
}

fn prompts_of(model: &Model, facts: &[Fact]) -> Vec<Vec<u32>> {
    let rows = facts.iter().map(|f| {
        PromptTemplate::default()
            .example(&model.tokenizer, f)
            .unwrap()
            .prompt
    });
    rows.collect()
}

#[test]
fn a_row_is_the_same_alone_in_a_batch_and_behind_a_shared_prefix() {
    let model = trained_model();
    let mut engine = Engine::new(&model.config);
    let mut generator = Generator::new(&mut engine, model);
    let mut prompts = prompts_of(model, &places());
    prompts[2].truncate(3);
    let prefix = model
        .tokenizer
        .encode_prompt("Q: Which country is Rome in?\nA: Italy\n")
        .unwrap();
    let joined: Vec<Vec<u32>> = prompts.iter().map(|p| [&prefix[..], p].concat()).collect();
    let mut tokens = |prefix: &[u32], prompts: &[Vec<u32>]| -> Vec<Vec<u32>> {
        let request = Request::greedy(prefix, prompts, 6);
        let rows = generator.generate(&request, |_, _| false, &|_| {}).unwrap();
        rows.into_iter().map(|mut r| r.remove(0).tokens).collect()
    };
    let together = tokens(&prefix, &prompts);
    assert_eq!(together, tokens(&[], &joined));
    for (alone, expected) in joined.chunks(1).zip(together.chunks(1)) {
        assert_eq!(tokens(&[], alone), expected);
    }
}

#[test]
fn samples_depend_on_seed_row_and_sample_alone() {
    let model = trained_model();
    let mut engine = Engine::new(&model.config);
    let mut generator = Generator::new(&mut engine, model);
    let prompts = prompts_of(model, &places());
    let mut sample = |prompts: &[Vec<u32>], samples, seed| {
        let sampling = SamplingParams {
            temperature: 3.0,
            top_k: 0,
            seed,
        };
        let request = Request {
            sampling,
            samples,
            ..Request::greedy(&[], prompts, 5)
        };
        generator.generate(&request, |_, _| false, &|_| {}).unwrap()
    };
    let five = sample(&prompts, 5, 1);
    let two = sample(&prompts[..3], 2, 1);
    for (more, fewer) in five.iter().zip(&two) {
        assert_eq!(more[..2], fewer[..]);
        assert_ne!(more[0], more[1]);
    }
    assert_ne!(five, sample(&prompts, 5, 2));
}

#[test]
fn generated_log_probabilities_equal_those_of_score() {
    let model = trained_model();
    let mut engine = Engine::new(&model.config);
    let mut generator = Generator::new(&mut engine, model);
    let prompts = prompts_of(model, &places());
    let request = Request {
        logprobs: Some(3),
        ..Request::greedy(&[], &prompts, 5)
    };
    let generated = generator.generate(&request, |_, _| false, &|_| {}).unwrap();
    let rows: Vec<(Vec<u32>, Vec<u32>)> = prompts
        .iter()
        .zip(&generated)
        .map(|(p, g)| (p.clone(), g[0].tokens.clone()))
        .collect();
    let scores = generator.score(&rows, &|_| {}).unwrap();
    for (generated, scores) in generated.iter().zip(scores) {
        assert_eq!(generated[0].logprobs.len(), scores.len());
        for (token, score) in generated[0].logprobs.iter().zip(scores) {
            // f32 sums in two orders, in a model of 2 layers.
            assert!((token.logprob - score).abs() < 1e-4, "{token:?} {score}");
            assert_eq!((token.top.len(), token.top[0].0), (3, token.id));
        }
    }
}

#[test]
fn an_empty_prompt_starts_with_bos_and_one_beyond_the_context_is_refused() {
    let model = trained_model();
    let mut engine = Engine::new(&model.config);
    let mut generator = Generator::new(&mut engine, model);
    let mut first = |prompts: &[Vec<u32>]| {
        let request = Request::greedy(&[], prompts, 3);
        generator.generate(&request, |_, _| false, &|_| {})
    };
    let begin = model.tokenizer.inner.token_to_id("<|bos|>").unwrap();
    assert_eq!(first(&[vec![]]).unwrap(), first(&[vec![begin]]).unwrap());
    let context = model.config.max_position_embeddings;
    let error = first(&[vec![5], vec![5; context]]).expect_err("there is no room for a token");
    assert!(
        matches!(error, Error::Input { .. }) && error.to_string().contains("row 2"),
        "{error}"
    );
    assert_eq!(
        first(&[vec![5; context - 1]]).unwrap()[0][0].tokens.len(),
        1
    );
    assert!(first(&[vec![model.config.vocab_size as u32]]).is_err());
}
