//! Progress on stderr: bars in a terminal, plain lines elsewhere, nothing if quiet.

use std::{
    fmt::Display,
    io::{IsTerminal, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use console::{Term, measure_text_width};
use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use crate::format;

mod live_plot;

pub use live_plot::LivePlot;

/// Minimum time between two lines of a bar without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Prints progress. Cheap to clone; all clones print to the same output.
#[derive(Clone, Debug)]
pub struct Progress {
    output: Output,
    job: Arc<Mutex<Option<Job>>>,
}

/// A long task in several parts, and how much of its work is done. The unit of work is the caller's.
#[derive(Debug)]
struct Job {
    done: f64,
    left: f64,
    started: Instant,
}

impl Job {
    /// The time that the work left takes at the mean rate so far; none as long as less than a hundredth is done.
    fn time_left(&self) -> Option<Duration> {
        let is_known = self.done > 0.01 * (self.done + self.left);
        let rate = self.done / self.started.elapsed().as_secs_f64();
        is_known.then(|| Duration::from_secs_f64(self.left / rate))
    }
}

#[derive(Clone, Debug)]
enum Output {
    Hidden,
    Terminal(MultiProgress),
    Lines(Arc<dyn Sink>),
}

/// Prints lines: to stderr, and in tests to a list.
trait Sink: Send + Sync + std::fmt::Debug {
    fn line(&self, line: &str);
}

#[derive(Debug)]
struct Stderr;

impl Sink for Stderr {
    fn line(&self, line: &str) {
        // The work continues when stderr is closed.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

impl Progress {
    /// Prints nothing.
    pub fn quiet() -> Self {
        Self::new(Output::Hidden)
    }

    /// Prints to stderr: bars in a terminal, else plain lines.
    pub fn stderr() -> Self {
        let output = if std::io::stderr().is_terminal() {
            Output::Terminal(MultiProgress::new())
        } else {
            Output::Lines(Arc::new(Stderr))
        };
        Self::new(output)
    }

    fn new(output: Output) -> Self {
        Self {
            output,
            job: Arc::default(),
        }
    }

    /// Says how much work is left of a task that bars show parts of. The first call starts the task; a later one corrects the amount.
    pub fn set_work_left(&self, work: f64) {
        let mut job = lock(&self.job);
        let job = job.get_or_insert_with(|| Job {
            done: 0.0,
            left: 0.0,
            started: Instant::now(),
        });
        job.left = work;
    }

    /// Counts work of the task as done, where no bar does.
    pub fn advance(&self, work: f64) {
        advance(&self.job, work);
    }

    /// A progress bar that counts to `total`, with rate and time left.
    pub fn bar(&self, total: u64, label: impl Into<String>) -> Bar {
        let label = label.into();
        let display = match &self.output {
            Output::Hidden => BarDisplay::Hidden,
            Output::Terminal(bars) => {
                let bar = bars.add(ProgressBar::new(total));
                bar.set_style(
                    ProgressStyle::with_template(
                        "{prefix} [{bar:16}] {human_pos}/{human_len}, {pace}{msg}",
                    )
                    .expect("the template is well formed")
                    .with_key(
                        "pace",
                        |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                            let is_done = state.len().is_some_and(|len| state.pos() >= len);
                            let text = if is_done {
                                format::rate(state.per_sec())
                            } else {
                                pace(state.per_sec(), state.eta())
                            };
                            // A key that cannot be written is left out.
                            let _ = out.write_str(&text);
                        },
                    )
                    .progress_chars("=> "),
                );
                bar.set_prefix(label.clone());
                bar.enable_steady_tick(Duration::from_millis(500));
                BarDisplay::Bar(bar)
            }
            Output::Lines(sink) => BarDisplay::Lines {
                sink: sink.clone(),
                last: Mutex::new(Instant::now()),
            },
        };
        Bar {
            display,
            label,
            total,
            done: AtomicU64::new(0),
            started: Instant::now(),
            message: Mutex::default(),
            job: Arc::clone(&self.job),
            work: 0.0,
        }
    }

    /// The time that is left of the task; `None` while too little of it is done.
    pub fn time_left(&self) -> Option<Duration> {
        lock(&self.job).as_ref().and_then(Job::time_left)
    }

    /// Rings the terminal's bell: a long task has finished.
    pub fn ring_bell(&self) {
        if let Output::Terminal(_) = self.output {
            let _ = write!(std::io::stderr(), "\u{7}");
        }
    }

    /// Prints a line above the bars.
    pub fn note(&self, line: impl Display) {
        match &self.output {
            Output::Hidden => {}
            Output::Terminal(bars) => {
                bars.suspend(|| Stderr.line(&wrap(&line.to_string(), terminal_columns())));
            }
            Output::Lines(sink) => sink.line(&line.to_string()),
        }
    }
}

/// A progress bar; finished when dropped.
#[derive(Debug)]
pub struct Bar {
    display: BarDisplay,
    label: String,
    total: u64,
    done: AtomicU64,
    started: Instant,
    /// The text after the count.
    message: Mutex<String>,
    job: Arc<Mutex<Option<Job>>>,
    /// Work of the task that one item counts.
    work: f64,
}

#[derive(Debug)]
enum BarDisplay {
    Hidden,
    Bar(ProgressBar),
    Lines {
        sink: Arc<dyn Sink>,
        last: Mutex<Instant>,
    },
}

impl Bar {
    /// Counts the items of this bar as so much work of the whole task.
    #[must_use]
    pub fn with_work(mut self, work: f64) -> Self {
        self.work = work / self.total.max(1) as f64;
        self
    }

    /// Adds `n` to the count.
    pub fn inc(&self, n: u64) {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        if self.work > 0.0 {
            advance(&self.job, self.work * n as f64);
        }
        match &self.display {
            BarDisplay::Hidden => {}
            BarDisplay::Bar(bar) => {
                bar.inc(n);
                bar.set_message(self.text_after_count());
            }
            BarDisplay::Lines { sink, last, .. } => {
                let Ok(mut last) = last.try_lock() else {
                    return;
                };
                if last.elapsed() >= LINE_INTERVAL && done < self.total {
                    *last = Instant::now();
                    sink.line(&self.line(done));
                }
            }
        }
    }

    /// Sets the text after the count, such as the loss.
    pub fn message(&self, text: impl Display) {
        *lock(&self.message) = text.to_string();
        if let BarDisplay::Bar(bar) = &self.display {
            bar.set_message(self.text_after_count());
        }
    }

    /// `, 12 min in all`, where it is known.
    fn whole_task(&self) -> String {
        let left = lock(&self.job).as_ref().and_then(Job::time_left);
        left.filter(|left| self.work > 0.0 && !left.is_zero())
            .map_or_else(String::new, |left| {
                format!(", {} in all", format::time_left(left))
            })
    }

    /// In a terminal: the time of the whole task, and the message below the bar.
    fn text_after_count(&self) -> String {
        let mut text = self.whole_task();
        let message = lock(&self.message);
        if !message.is_empty() {
            text += &format!("\n  {message}");
        }
        text
    }

    /// `audit 340/1,000 | 85/s, 8 s left`; with the duration once it has finished.
    fn line(&self, done: u64) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = done as f64 / seconds.max(1e-9);
        let mut line = format!(
            "{} {}/{} | ",
            self.label,
            HumanCount(done),
            HumanCount(self.total)
        );
        if done < self.total && done > 0 {
            let left = Duration::from_secs_f64((self.total - done) as f64 / rate);
            line += &pace(rate, left);
        } else {
            line += &format!("{}, took {}", format::rate(rate), format::duration(seconds));
        }
        line += &self.whole_task();
        let message = lock(&self.message);
        if !message.is_empty() {
            line += &format!(" | {message}");
        }
        line
    }
}

/// Columns of the terminal on stderr.
fn terminal_columns() -> usize {
    let (_, columns) = Term::stderr().size();
    columns.into()
}

/// `text` with lines of at most `columns` columns, broken between words; continued lines are indented. A longer word stays whole.
pub fn wrap(text: &str, columns: usize) -> String {
    const INDENT: &str = "  ";

    let wrapped = text.split('\n').map(|line| {
        if measure_text_width(line) <= columns {
            return line.to_owned();
        }
        let mut lines: Vec<String> = Vec::new();
        let mut current = String::new();
        for word in line.split(' ') {
            let is_first = current.is_empty() || current == INDENT;
            let width = measure_text_width(&current) + 1 + measure_text_width(word);
            if !is_first && width > columns {
                lines.push(std::mem::replace(&mut current, INDENT.into()));
                current += word;
            } else {
                current += if current.is_empty() || current == INDENT {
                    ""
                } else {
                    " "
                };
                current += word;
            }
        }
        lines.push(current);
        lines.join("\n")
    });
    wrapped.collect::<Vec<_>>().join("\n")
}

/// `85/s, 8 s left`.
fn pace(per_second: f64, left: Duration) -> String {
    format!(
        "{}, {} left",
        format::rate(per_second),
        format::time_left(left)
    )
}

/// The value of a mutex. A thread that panicked left a valid one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn advance(job: &Mutex<Option<Job>>, work: f64) {
    if let Some(job) = lock(job).as_mut() {
        job.done += work;
        job.left = (job.left - work).max(0.0);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        match &self.display {
            BarDisplay::Hidden => {}
            BarDisplay::Bar(bar) => bar.finish_and_clear(),
            BarDisplay::Lines { sink, .. } => {
                sink.line(&self.line(self.done.load(Ordering::Relaxed)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct CollectedLines(Mutex<Vec<String>>);

    impl Sink for CollectedLines {
        fn line(&self, line: &str) {
            self.0.lock().unwrap().push(line.to_owned());
        }
    }

    #[test]
    fn a_short_task_prints_one_line_with_its_last_message() {
        let collected = Arc::new(CollectedLines::default());
        let progress = Progress::new(Output::Lines(collected.clone()));
        let bar = progress.bar(1000, "audit");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..250).for_each(|_| bar.inc(1)));
            }
        });
        bar.message("loss 0.12");
        drop(bar);
        progress.note("done");
        let lines = collected.0.lock().unwrap();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("audit 1,000/1,000 | "), "{}", lines[0]);
        assert!(lines[0].ends_with(" s | loss 0.12"), "{}", lines[0]);
        assert_eq!(lines[1], "done");
    }

    #[test]
    fn an_evaluation_prints_one_line_without_a_terminal() {
        let collected = Arc::new(CollectedLines::default());
        let progress = Progress::new(Output::Lines(collected.clone()));
        let mut plot = LivePlot::new(&progress, 8);
        let accuracies = vec![("unknown", 0.25), ("held", 1.0)];
        plot.extend([(0, accuracies.clone())]);
        plot.log(1, accuracies);
        drop(plot);
        assert_eq!(
            *collected.0.lock().unwrap(),
            ["epoch 1/8 | accuracy: unknown 25.0%, held 100.0%"]
        );
    }

    #[test]
    fn long_notes_are_broken_between_words() {
        let text = "estimated time: 2 s at most (training 1.9 s)\nshort";
        assert_eq!(
            wrap(text, 24),
            "estimated time: 2 s at\n  most (training 1.9 s)\nshort"
        );
        assert_eq!(
            wrap("a http://127.0.0.1:1/long b", 12),
            "a\n  http://127.0.0.1:1/long\n  b"
        );
        assert_eq!(wrap(text, 80), text);
    }

    #[test]
    fn a_progress_line_shows_rate_and_time_left() {
        let ten_seconds_ago = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let progress = Progress::quiet();
        let mut bar = progress.bar(100, "train").with_work(200.0);
        bar.started = ten_seconds_ago;
        assert_eq!(bar.line(25), "train 25/100 | 2.5/s, 30 s left");

        // A quarter of the bar's 200 of 1,000 units of work took ten seconds.
        progress.set_work_left(1000.0);
        lock(&progress.job).as_mut().unwrap().started = ten_seconds_ago;
        bar.inc(25);
        bar.message("loss 0.12");
        let line = bar.line(25);
        assert_eq!(
            line,
            "train 25/100 | 2.5/s, 30 s left, 3 min in all | loss 0.12"
        );
        progress.advance(950.0);
        assert_eq!(lock(&progress.job).as_ref().unwrap().left, 0.0);
    }
}
