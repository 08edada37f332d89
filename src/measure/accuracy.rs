//! Facts asked at the training prompt: right or wrong, and what the model says.

use crate::{
    Result,
    facts::{Fact, Judge, Match, Verdict},
    generate::{Generator, Request},
    model::TextTokenizer,
    prompt::PromptTemplate,
};

/// Tokens of an answer beyond the longest target: other spellings.
const SLACK_TOKENS: usize = 4;

/// Tokens of an answer that is written out for people, at least.
const WRITTEN_TOKENS: usize = 16;

/// Tokens of an answer of which a part may be right.
const VERBOSE_TOKENS: usize = 32;

/// Facts ready to be asked again and again: a split of a run.
pub struct Exam {
    rows: Vec<(Vec<u32>, Vec<u32>)>, // prompt, target
    targets: Vec<String>,
    judges: Vec<Judge>,
    rule: Match,
}

/// A greedy answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its first line.
    pub text: String,
    /// Whether it is right.
    pub right: bool,
}

/// What one teacher-forced pass tells of a fact.
enum Forced {
    /// Whether the greedy answer is right.
    Decided(bool),
    /// It left the target, and may still be right.
    Open,
}

impl Exam {
    /// Facts as `template` asks them.
    ///
    /// # Errors
    /// When the tokenizer refuses a text.
    pub fn new<'a>(
        facts: impl IntoIterator<Item = &'a Fact>,
        template: &PromptTemplate,
        tokenizer: &TextTokenizer,
        rule: Match,
    ) -> Result<Self> {
        let mut exam = Self {
            rows: Vec::new(),
            targets: Vec::new(),
            judges: Vec::new(),
            rule,
        };
        for fact in facts {
            let row = template.row(tokenizer, fact)?;
            exam.rows.push((row.prompt, row.target));
            exam.targets.push(fact.target());
            exam.judges.push(fact.judge(rule));
        }
        Ok(exam)
    }

    /// Number of facts.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no fact.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether the greedy answer to each fact is right.
    ///
    /// One teacher-forced pass over the targets decides nearly all: where every token is the most likely one the answer is
    /// right, and where the first other one makes it surely wrong it is wrong. The rest is generated.
    ///
    /// # Errors
    /// When a prompt is longer than the model's context.
    pub fn right(&self, generator: &mut Generator<'_>) -> Result<Vec<bool>> {
        let forced = self.force(generator)?;
        let open: Vec<usize> = (0..forced.len())
            .filter(|i| matches!(forced[*i], Forced::Open))
            .collect();
        let mut right: Vec<bool> = forced
            .into_iter()
            .map(|f| matches!(f, Forced::Decided(true)))
            .collect();
        let stop = |judge: &Judge, text: &str| judge.verdict(text) == Verdict::Wrong;
        for (i, answer) in open.iter().zip(self.generate(generator, &open, stop)?) {
            right[*i] = self.judges[*i].is_right(&answer);
        }
        Ok(right)
    }

    /// The greedy answer to each fact, up to its first line break.
    ///
    /// # Errors
    /// When a prompt is longer than the model's context.
    pub fn answers(&self, generator: &mut Generator<'_>) -> Result<Vec<Answered>> {
        let forced = self.force(generator)?;
        let proved = |i: &usize| matches!(forced[*i], Forced::Decided(true));
        let others: Vec<usize> = (0..forced.len()).filter(|i| !proved(i)).collect();
        let mut answers: Vec<Answered> = self
            .targets
            .iter()
            .map(|target| Answered {
                text: target.clone(),
                right: true,
            })
            .collect();
        for (i, text) in others
            .iter()
            .zip(self.generate(generator, &others, |_, _| false)?)
        {
            let right = self.judges[*i].is_right(&text);
            let text = text
                .split('\n')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned();
            answers[*i] = Answered { text, right };
        }
        Ok(answers)
    }

    /// One teacher-forced pass over all targets.
    fn force(&self, generator: &mut Generator<'_>) -> Result<Vec<Forced>> {
        let best = generator.greedy_tokens(&self.rows)?;
        let rows = self.rows.iter().zip(&self.judges).zip(best);
        let forced = rows.map(|(((_, target), judge), best)| {
            let Some(i) = target.iter().zip(&best).position(|(t, b)| t != b) else {
                return Forced::Decided(true);
            };
            let said = [&target[..i], &best[i..=i]].concat();
            let text = generator.tokenizer.decode(&said);
            if generator.tokenizer.end_tokens.contains(&best[i]) || text.contains('\n') {
                Forced::Decided(judge.is_right(&text))
            } else if judge.verdict(&text) == Verdict::Wrong {
                Forced::Decided(false)
            } else {
                Forced::Open
            }
        });
        Ok(forced.collect())
    }

    /// Texts that the model writes for the facts at `which`, each until its line ends or `stop` says so.
    fn generate(
        &self,
        generator: &mut Generator<'_>,
        which: &[usize],
        stop: impl Fn(&Judge, &str) -> bool + Sync,
    ) -> Result<Vec<String>> {
        let longest = self.rows.iter().map(|(_, target)| target.len()).max();
        let most = match self.rule {
            Match::Exact => WRITTEN_TOKENS.max(longest.unwrap_or(0) + SLACK_TOKENS),
            Match::Contains => longest.unwrap_or(0) + VERBOSE_TOKENS,
        };
        let prompts: Vec<Vec<u32>> = which.iter().map(|i| self.rows[*i].0.clone()).collect();
        let request = Request::greedy(&[], &prompts, most);
        let done =
            |row: usize, text: &str| text.contains('\n') || stop(&self.judges[which[row]], text);
        let generated = generator.generate(&request, done, &|_| {})?;
        Ok(generated
            .into_iter()
            .map(|mut g| g.swap_remove(0).text)
            .collect())
    }
}
