//! Progress on stderr: bars in a terminal, plain lines elsewhere, nothing if quiet.

use std::{
    fmt::Display,
    io::{IsTerminal, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

mod live_plot;

pub use live_plot::LivePlot;

/// Minimum time between two lines of a bar without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Prints progress. Cheap to clone; all clones print to the same output.
#[derive(Clone, Debug)]
pub struct Progress {
    output: Output,
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
        Self {
            output: Output::Hidden,
        }
    }

    /// Prints to stderr: bars in a terminal, else plain lines.
    pub fn stderr() -> Self {
        let output = if std::io::stderr().is_terminal() {
            Output::Terminal(MultiProgress::new())
        } else {
            Output::Lines(Arc::new(Stderr))
        };
        Self { output }
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
                        "{prefix} [{bar:24}] {human_pos}/{human_len} {per_sec}, {eta} left {msg}",
                    )
                    .expect("the template is well formed")
                    .progress_chars("=> "),
                );
                bar.set_prefix(label.clone());
                bar.enable_steady_tick(Duration::from_millis(500));
                BarDisplay::Bar(bar)
            }
            Output::Lines(sink) => BarDisplay::Lines {
                sink: sink.clone(),
                last: Mutex::new(Instant::now()),
                message: Mutex::new(String::new()),
            },
        };
        Bar {
            display,
            label,
            total,
            done: AtomicU64::new(0),
            started: Instant::now(),
        }
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
            Output::Terminal(bars) => bars.suspend(|| Stderr.line(&line.to_string())),
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
}

#[derive(Debug)]
enum BarDisplay {
    Hidden,
    Bar(ProgressBar),
    Lines {
        sink: Arc<dyn Sink>,
        last: Mutex<Instant>,
        message: Mutex<String>,
    },
}

impl Bar {
    /// Adds `n` to the count.
    pub fn inc(&self, n: u64) {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        match &self.display {
            BarDisplay::Hidden => {}
            BarDisplay::Bar(bar) => bar.inc(n),
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
        match &self.display {
            BarDisplay::Hidden => {}
            BarDisplay::Bar(bar) => bar.set_message(format!("| {text}")),
            BarDisplay::Lines { message, .. } => {
                *message.lock().unwrap_or_else(PoisonError::into_inner) = format!(" | {text}");
            }
        }
    }

    /// `audit 340/1,000 | 85.2/s, 8 seconds left`; with the duration once it has finished.
    fn line(&self, done: u64) -> String {
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = done as f64 / seconds.max(1e-9);
        let count = format!(
            "{} {}/{}",
            self.label,
            HumanCount(done),
            HumanCount(self.total)
        );
        let time = if done < self.total && done > 0 {
            let left = Duration::from_secs_f64((self.total - done) as f64 / rate);
            format!("{rate:.1}/s, {} left", HumanDuration(left))
        } else {
            format!("{rate:.1}/s, took {seconds:.1} s")
        };
        let message = match &self.display {
            BarDisplay::Lines { message, .. } => message
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            _ => String::new(),
        };
        format!("{count} | {time}{message}")
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
        let progress = Progress {
            output: Output::Lines(collected.clone()),
        };
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
        let progress = Progress {
            output: Output::Lines(collected.clone()),
        };
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
    fn a_progress_line_shows_rate_and_time_left() {
        let bar = Bar {
            display: BarDisplay::Hidden,
            label: "train".into(),
            total: 100,
            done: AtomicU64::new(0),
            started: Instant::now().checked_sub(Duration::from_secs(10)).unwrap(),
        };
        let line = bar.line(25);
        assert!(
            line.starts_with("train 25/100 | 2.5/s, 30 seconds left"),
            "{line}"
        );
    }
}
