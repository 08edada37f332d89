//! `SLiCK` as the paper did it: greedy answers and samples are generated.

use super::exact::{Answer, Asked, Examiner, written};
use crate::{
    Result,
    facts::{Judge, Verdict},
    generate::{Generated, Request, Sampling},
};

impl Examiner<'_, '_> {
    /// Asks every question as [`Self::ask`] does, but generates the greedy answer and draws the samples;
    /// [`Answer::p_sampled`] is the share of right ones.
    ///
    /// # Errors
    /// As [`crate::generate::Generator::generate`].
    pub fn ask_by_sampling(
        &mut self,
        prefixes: &[Vec<u32>],
        asked: &[Asked<'_>],
        finished: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(asked.len());
        for part in asked.chunk_by(|a, b| a.prefix == b.prefix) {
            let judges: Vec<&Judge> = part.iter().map(|a| a.judge).collect();
            let prompts: Vec<Vec<u32>> = part.iter().map(|a| a.question.to_vec()).collect();
            let prefix = &prefixes[part[0].prefix];
            let greedy = Request::greedy(prefix, &prompts, self.max_new_tokens);
            let sampling = Sampling {
                temperature: self.settings.temperature,
                top_k: self.settings.top_k,
                // Each prefix draws from streams of its own.
                seed: self.settings.seed ^ ((part[0].prefix as u64 + 1) << 32),
            };
            let sampled = Request {
                sampling,
                samples: self.settings.samples,
                ..greedy
            };
            let whole = self.settings.whole_answers;
            let first = self.generator.generate(
                &greedy,
                |row, text| text.contains('\n') || (!whole && is_lost(judges[row], text)),
                &|_| {},
            )?;
            let samples = self.generator.generate(
                &sampled,
                |row, text| text.contains('\n') || is_lost(judges[row], text),
                finished,
            )?;
            for ((judge, greedy), samples) in judges.iter().zip(&first).zip(&samples) {
                let greedy = &greedy[0];
                let is_right = |s: &&Generated| judge.is_right(&s.text);
                answers.push(Answer {
                    greedy_right: judge.is_right(&greedy.text),
                    greedy: written(
                        &greedy.text,
                        greedy.tokens.last().is_some_and(|t| self.ends.contains(*t)),
                    ),
                    p_sampled: samples.iter().filter(is_right).count() as f64
                        / samples.len().max(1) as f64,
                });
            }
        }
        Ok(answers)
    }
}

fn is_lost(judge: &Judge, text: &str) -> bool {
    judge.verdict(text) == Verdict::Wrong
}
