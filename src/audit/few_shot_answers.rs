//! Answers of a model under few-shot prompts: what the base model knows before training, and comparisons of two models.
//!
//! A model that never saw the training prompt may know a fact and answer it in other words ("The capital of France is Paris.").
//! The exemplars of a few-shot prompt show the format, so that what is measured is knowledge.

use std::collections::{BTreeMap, HashSet};

use super::{
    few_shot::{self, FewShotPrompt},
    settings::AuditSettings,
};
use crate::{
    Result,
    facts::{Fact, MatchRule},
    generate::{Generator, Request, common_prefix},
    measure::{EvalAnswer, known_before, max_answer_tokens},
    progress::Progress,
    prompt::PromptTemplate,
};

/// Prompts under which each fact is evaluated when models are compared: the first ones of its relation. A fact that is `HighlyKnown`
/// under all prompts of an audit is correct under any of them.
pub const COMPARED_PROMPTS: usize = 3;

/// How facts are asked under few-shot prompts.
#[derive(Clone, Copy, Debug)]
pub struct FewShotQuestions<'a> {
    /// The prompts of all relations. A fact of another relation is asked without exemplars.
    pub prompts: &'a [FewShotPrompt],
    /// The template that the prompts were drawn with.
    pub template: &'a PromptTemplate,
    /// When an answer is correct.
    pub match_rule: MatchRule,
}

impl FewShotQuestions<'_> {
    /// One answer to each fact, under the first [`COMPARED_PROMPTS`] of its prompts: correct if at least half of the answers are.
    /// The text is that of the first answer with this verdict, to the end of its line.
    ///
    /// # Errors
    /// [`crate::Error::Input`] if a question and its prompt are longer than the model's context.
    pub fn answers(
        &self,
        facts: &[&Fact],
        generator: &mut Generator<'_>,
        progress: &Progress,
    ) -> Result<Vec<EvalAnswer>> {
        let each = self.answers_under(facts, COMPARED_PROMPTS, generator, progress)?;
        Ok(each.into_iter().map(majority).collect())
    }

    /// The answers to each fact under at most `max_prompts` of its prompts, in their order.
    ///
    /// # Errors
    /// As [`Self::answers`].
    pub fn answers_under(
        &self,
        facts: &[&Fact],
        max_prompts: usize,
        generator: &mut Generator<'_>,
        progress: &Progress,
    ) -> Result<Vec<Vec<EvalAnswer>>> {
        let (tokenizer, comm) = (generator.tokenizer, generator.comm());
        let mut by_prefix: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut prefixes: Vec<Vec<&str>> = Vec::with_capacity(facts.len());
        let mut longest = 0;
        for (i, fact) in facts.iter().enumerate() {
            let target = self.template.target_text(&fact.target());
            longest = longest.max(self.template.encode_target(tokenizer, &target)?.len());
            let of_fact = self.prefixes(fact, max_prompts);
            for prefix in &of_fact {
                by_prefix.entry(*prefix).or_default().push(i);
            }
            prefixes.push(of_fact);
        }
        let max_new_tokens = max_answer_tokens(longest, self.match_rule);
        let questions: usize = prefixes.iter().map(Vec::len).sum();
        let bar = progress.bar(questions as u64, "few-shot questions");
        let mut texts: BTreeMap<(usize, &str), String> = BTreeMap::new();
        for (prefix, members) in by_prefix {
            let own = &members[comm.shard_range(members.len())];
            let prompt = |i: &usize| -> Result<Vec<u32>> {
                let question = &facts[*i].question;
                if prefix.is_empty() {
                    let text = self.template.prompt_text(question);
                    self.template.encode(tokenizer, &text)
                } else {
                    tokenizer.encode_after(prefix, &self.template.next_prompt_text(question))
                }
            };
            let prompts: Vec<Vec<u32>> = own.iter().map(prompt).collect::<Result<_>>()?;
            let mut shared = if prefix.is_empty() {
                Vec::new()
            } else {
                self.template.encode(tokenizer, prefix)?
            };
            let common = common_prefix(prompts.iter().map(|p| &p[..])).len();
            shared.extend(prompts.iter().take(1).flat_map(|p| &p[..common]));
            let rest: Vec<Vec<u32>> = prompts.iter().map(|p| p[common..].to_vec()).collect();
            let request = Request::greedy(&shared, &rest, max_new_tokens);
            let at_line_end = |_: usize, text: &str| text.contains('\n');
            let generated = generator.generate(&request, at_line_end, &|n| bar.inc(n as u64))?;
            let own = generated.into_iter();
            let own = own.map(|mut answers| answers.swap_remove(0).text);
            let all = comm.all_gather(own.collect());
            texts.extend(members.iter().map(|i| (*i, prefix)).zip(all));
        }
        let answers = facts.iter().zip(prefixes).enumerate();
        Ok(answers
            .map(|(i, (fact, prefixes))| {
                let scorer = fact.scorer(self.match_rule);
                let answer = |prefix| {
                    let text = texts.remove(&(i, prefix)).unwrap_or_default();
                    EvalAnswer {
                        correct: scorer.is_correct(&text),
                        text: text.lines().next().unwrap_or_default().trim().to_owned(),
                    }
                };
                prefixes.into_iter().map(answer).collect()
            })
            .collect())
    }

    /// The few-shot texts before the question of `fact`, without those that hold the fact itself; at least one, which is empty
    /// where no prompt is left.
    fn prefixes(&self, fact: &Fact, max_prompts: usize) -> Vec<&str> {
        let of_relation = self.prompts.iter().filter(|p| p.relation == fact.relation);
        let mut seen = HashSet::new();
        let mut prefixes: Vec<&str> = of_relation
            .filter(|prompt| !prompt.reveals(&fact.question))
            .map(|prompt| prompt.prefix_for(&fact.question))
            .filter(|prefix| seen.insert(*prefix))
            .take(max_prompts)
            .collect();
        if prefixes.is_empty() {
            prefixes.push("");
        }
        prefixes
    }
}

/// One answer for several: see [`FewShotQuestions::answers`].
fn majority(answers: Vec<EvalAnswer>) -> EvalAnswer {
    let correct = answers.iter().filter(|a| a.correct).count();
    let share = correct as f64 / answers.len() as f64;
    let correct = known_before(Some(share), false, false);
    let mut with_verdict = answers.into_iter().filter(|a| a.correct == correct);
    with_verdict
        .next()
        .expect("some answer has the verdict of at least half")
}

/// Few-shot prompts for `facts`: the `kept` ones of an audit for the relations that it had, and for the others new ones, drawn from
/// the facts themselves. Also returns remarks for the user.
pub fn prompts_for(
    facts: &[&Fact],
    kept: &[FewShotPrompt],
    template: &PromptTemplate,
    seed: u64,
) -> (Vec<FewShotPrompt>, Vec<String>) {
    let has_prompts: HashSet<&str> = kept.iter().map(|p| &p.relation[..]).collect();
    let without = facts.iter().copied();
    let without: Vec<&Fact> = without
        .filter(|fact| !has_prompts.contains(&fact.relation[..]))
        .collect();
    let settings = AuditSettings {
        num_prompts: COMPARED_PROMPTS,
        seed,
        template: template.clone(),
        ..AuditSettings::default()
    };
    let mut notes = Vec::new();
    let drawn = few_shot::draw_all(&without, None, &settings, &mut notes);
    (kept.iter().cloned().chain(drawn).collect(), notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Engine, model::Model};

    fn answer(text: &str, correct: bool) -> EvalAnswer {
        EvalAnswer {
            text: text.into(),
            correct,
        }
    }

    #[test]
    fn at_least_half_of_the_answers_decide() {
        let of = |answers: &[(&str, bool)]| {
            majority(answers.iter().map(|(t, c)| answer(t, *c)).collect())
        };
        let known = of(&[("Spain", false), ("Italy", true), ("italy", true)]);
        assert_eq!(known, answer("Italy", true));
        assert_eq!(
            of(&[("Spain", false), ("Italy", true)]),
            answer("Italy", true)
        );
        let unknown = of(&[("Italy", true), ("Spain", false), ("Peru", false)]);
        assert_eq!(unknown, answer("Spain", false));
    }

    #[test]
    fn a_fact_is_never_asked_behind_itself() {
        let facts: Vec<Fact> = ["Rome", "Oslo", "Lima", "Bonn"]
            .iter()
            .zip(["Italy", "Norway", "Peru", "Germany"])
            .map(|(subject, object)| Fact::for_test(subject, object))
            .collect();
        let facts: Vec<&Fact> = facts.iter().collect();
        let template = PromptTemplate::default();
        let (prompts, notes) = prompts_for(&facts, &[], &template, 0);
        assert!(notes.is_empty() && prompts.len() == COMPARED_PROMPTS);
        let questions = FewShotQuestions {
            prompts: &prompts,
            template: &template,
            match_rule: MatchRule::Exact,
        };
        for fact in &facts {
            for prefix in questions.prefixes(fact, COMPARED_PROMPTS) {
                assert!(!prefix.is_empty() && !prefix.contains(&fact.question));
            }
        }
        // Prompts of an audit whose exemplars were not asked have no substitutes: those with the fact are left out.
        let mut kept = prompts.clone();
        for prompt in &mut kept {
            prompt.substitute_prefixes.clear();
        }
        let questions = FewShotQuestions {
            prompts: &kept,
            ..questions
        };
        for fact in &facts {
            for prefix in questions.prefixes(fact, COMPARED_PROMPTS) {
                assert!(!prefix.contains(&fact.question));
            }
        }
        // Relations that the audit had keep its prompts; another one gets its own.
        let other = Fact {
            relation: "P36".into(),
            ..facts[0].clone()
        };
        let (both, _) = prompts_for(&[facts[1], &other], &prompts[..1], &template, 0);
        assert_eq!(both[0], prompts[0]);
        assert!(both.len() > 1 && both[1..].iter().all(|p| p.relation == "P36"));
    }

    #[test]
    fn answers_are_those_of_the_audit_under_the_same_prompts() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let model = Model::load(model).expect("the golden model is there");
        let mut engine = Engine::new(&model.config);
        let facts: Vec<Fact> = ["Rome", "Oslo", "Lima", "Bonn", "Nice", "Pisa"]
            .iter()
            .zip(["Italy", "Norway", "Peru", "Germany", "France", "Italy"])
            .map(|(subject, object)| Fact::for_test(subject, object))
            .collect();
        let settings = AuditSettings {
            num_prompts: 2,
            full_answers: true,
            ..AuditSettings::default()
        };
        let progress = Progress::quiet();
        let audit =
            super::super::audit_uncached(&model, &mut engine, &facts, None, &settings, &progress)
                .expect("short questions");
        let questions = FewShotQuestions {
            prompts: &audit.prompts,
            template: &settings.template,
            match_rule: settings.match_rule,
        };
        let asked: Vec<&Fact> = facts.iter().collect();
        let mut generator = Generator::new(&mut engine, &model);
        let answers = questions.answers_under(&asked, 2, &mut generator, &progress);
        for (own, audited) in answers.expect("short questions").iter().zip(&audit.facts) {
            for (own, text) in own.iter().zip(&audited.answers) {
                // Both stop at the end of the line, or after different numbers of tokens.
                let text = text.trim_end_matches('\u{2026}').trim();
                let is_same = own.text.starts_with(text) || text.starts_with(&own.text);
                assert!(is_same, "{:?} {text:?}", own.text);
            }
        }
    }
}
