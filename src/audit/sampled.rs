//! Greedy answers and samples by generation, as in the paper.

use super::{
    label::AuditAnswer,
    queries::{Query, QueryRunner, first_line_text},
};
use crate::{
    Result,
    facts::{AnswerScorer, AnswerVerdict},
    generate::{Generated, Request, SamplingParams},
};

impl QueryRunner<'_, '_> {
    /// Answers every query; [`AuditAnswer::p_sampled`] is the fraction of correct samples.
    ///
    /// # Errors
    /// Those of [`crate::generate::Generator::generate`].
    pub fn answer_by_sampling(
        &mut self,
        prefixes: &[Vec<u32>],
        queries: &[Query<'_>],
        on_progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<AuditAnswer>> {
        let mut answers = Vec::with_capacity(queries.len());
        for group in queries.chunk_by(|a, b| a.prefix == b.prefix) {
            let scorers: Vec<&AnswerScorer> = group.iter().map(|q| q.scorer).collect();
            let prompts: Vec<Vec<u32>> = group.iter().map(|q| q.question.to_vec()).collect();
            let prefix = &prefixes[group[0].prefix];
            let greedy = Request::greedy(prefix, &prompts, self.max_new_tokens);
            let sampling = SamplingParams {
                temperature: self.settings.temperature,
                top_k: self.settings.top_k,
                // Each prefix has its own random streams.
                seed: self.settings.seed ^ ((group[0].prefix as u64 + 1) << 32),
            };
            let sampled = Request {
                sampling,
                samples: self.settings.samples,
                ..greedy
            };
            let full_answers = self.settings.full_answers;
            let first = self.generator.generate(
                &greedy,
                |row, text| text.contains('\n') || (!full_answers && is_wrong(scorers[row], text)),
                &|_| {},
            )?;
            let samples = self.generator.generate(
                &sampled,
                |row, text| text.contains('\n') || is_wrong(scorers[row], text),
                on_progress,
            )?;
            for ((scorer, greedy), samples) in scorers.iter().zip(&first).zip(&samples) {
                let greedy = &greedy[0];
                let is_correct = |s: &&Generated| scorer.is_correct(&s.text);
                answers.push(AuditAnswer {
                    greedy_correct: scorer.is_correct(&greedy.text),
                    greedy: first_line_text(
                        &greedy.text,
                        greedy
                            .tokens
                            .last()
                            .is_some_and(|t| self.stop_tokens.contains(*t)),
                    ),
                    p_sampled: samples.iter().filter(is_correct).count() as f64
                        / samples.len().max(1) as f64,
                });
            }
        }
        Ok(answers)
    }
}

fn is_wrong(scorer: &AnswerScorer, text: &str) -> bool {
    scorer.verdict(text) == AnswerVerdict::Wrong
}
