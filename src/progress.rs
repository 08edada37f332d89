//! Progress on stderr: bars in a terminal, plain lines elsewhere, nothing if quiet.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use console::{Term, measure_text_width};
use indicatif::{
    HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
    TermLike,
};

use crate::format;

mod live_plot;

pub use live_plot::LivePlot;

/// Minimum time between two lines of a bar without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// How often bars in a terminal are drawn at most.
const DRAWS_PER_SECOND: u8 = 20;

/// A shorter time left is not told.
const SHORTEST_TIME_LEFT: Duration = Duration::from_millis(500);

/// Prints progress. Cheap to clone; all clones print to the same output.
#[derive(Clone, Debug)]
pub struct Progress {
    output: Output,
    job: Arc<Mutex<Option<Job>>>,
    /// The label of the bar that is shown.
    phase: Arc<Mutex<Option<String>>>,
}

/// The kinds of work of a long task. The time of a unit differs between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// Questions of an audit.
    Audit,
    /// Training steps.
    Training,
    /// Questions of an evaluation.
    Evaluation,
    /// Answers to general prompts.
    Behaviour,
}

impl WorkKind {
    const COUNT: usize = 4;
}

/// A long task in several parts, and how much of its work is done. The unit of work is the caller's.
#[derive(Debug)]
struct Job {
    work: [KindOfWork; WorkKind::COUNT],
    /// Whether it may end with less work than that.
    may_end_early: bool,
    /// When work was counted last.
    counted: Instant,
}

/// The work of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct KindOfWork {
    left: f64,
    done: f64,
    /// Seconds that `done` took.
    seconds: f64,
    /// Seconds of a unit, as estimated before it was measured.
    estimated: f64,
}

impl KindOfWork {
    /// Share of the work that the estimate counts as much as, so that a slow start changes the time left little.
    const ESTIMATE_WEIGHT: f64 = 0.05;

    /// Seconds of a unit: measured, and as estimated as long as little is done.
    fn seconds_per_unit(&self) -> f64 {
        let weight = Self::ESTIMATE_WEIGHT * (self.done + self.left);
        if self.done + weight > 0.0 {
            (self.seconds + weight * self.estimated) / (self.done + weight)
        } else {
            0.0
        }
    }
}

impl Job {
    /// The time that the work left takes; none once it should be over.
    fn time_left(&self) -> Option<Duration> {
        let seconds = self.work.iter().map(|w| w.left * w.seconds_per_unit());
        let left = Duration::from_secs_f64(seconds.sum());
        left.checked_sub(self.counted.elapsed())
            .filter(|left| *left >= SHORTEST_TIME_LEFT)
    }

    /// `5 min left`, or `at most 5 min left`; none once it should be over.
    fn text(&self) -> Option<String> {
        let left = format::time_left(self.time_left()?);
        let bound = if self.may_end_early { "at most " } else { "" };
        Some(format!("{bound}{left} left"))
    }

    /// Counts work as done since the last call.
    fn advance(&mut self, kind: WorkKind, work: f64) {
        let counted = Instant::now();
        let of_kind = &mut self.work[kind as usize];
        of_kind.done += work;
        of_kind.left = (of_kind.left - work).max(0.0);
        of_kind.seconds += (counted - self.counted).as_secs_f64();
        self.counted = counted;
    }
}

/// The count of a bar over time.
#[derive(Debug)]
struct Pace {
    started: Instant,
    total: u64,
    /// The count, and when it was reached.
    counted: Mutex<(u64, Instant)>,
}

impl Pace {
    fn new(total: u64) -> Self {
        let started = Instant::now();
        Self {
            started,
            total,
            counted: Mutex::new((0, started)),
        }
    }

    /// Counts `n` more; the new count.
    fn inc(&self, n: u64) -> u64 {
        let mut counted = lock(&self.counted);
        *counted = (counted.0 + n, Instant::now());
        counted.0
    }

    fn done(&self) -> u64 {
        lock(&self.counted).0
    }

    /// Items per second until the last count; `None` before the first.
    fn per_second(&self) -> Option<f64> {
        let (done, at) = *lock(&self.counted);
        let seconds = (at - self.started).as_secs_f64().max(1e-9);
        (done > 0).then(|| done as f64 / seconds)
    }

    /// The time until the bar is full at the mean rate; `None` before the first count, and once it should be full.
    fn time_left(&self) -> Option<Duration> {
        let per_second = self.per_second()?;
        let (done, at) = *lock(&self.counted);
        let left = Duration::from_secs_f64(self.total.saturating_sub(done) as f64 / per_second);
        left.checked_sub(at.elapsed())
            .filter(|left| *left >= SHORTEST_TIME_LEFT)
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
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// Whether the terminal cannot move its cursor.
fn is_dumb_terminal() -> bool {
    let term = std::env::var("TERM");
    cfg!(unix) && matches!(term.as_deref(), Err(_) | Ok("dumb"))
}

/// The terminal of stderr. What cannot be written is dropped: the work continues when the terminal is closed.
#[derive(Debug)]
struct LenientTerminal(Term);

impl TermLike for LenientTerminal {
    fn width(&self) -> u16 {
        self.0.size().1
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_up(n).or(Ok(()))
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_down(n).or(Ok(()))
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_right(n).or(Ok(()))
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_left(n).or(Ok(()))
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.0.write_line(text).or(Ok(()))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text).or(Ok(()))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line().or(Ok(()))
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush().or(Ok(()))
    }
}

impl Progress {
    /// Prints nothing.
    pub fn quiet() -> Self {
        Self::new(Output::Hidden)
    }

    /// Prints to stderr: bars in a terminal, else plain lines.
    pub fn stderr() -> Self {
        let output = if io::stderr().is_terminal() && !is_dumb_terminal() {
            let terminal = LenientTerminal(Term::buffered_stderr());
            let target =
                ProgressDrawTarget::term_like_with_hz(Box::new(terminal), DRAWS_PER_SECOND);
            Output::Terminal(MultiProgress::with_draw_target(target))
        } else {
            Output::Lines(Arc::new(Stderr))
        };
        Self::new(output)
    }

    fn new(output: Output) -> Self {
        Self {
            output,
            job: Arc::default(),
            phase: Arc::default(),
        }
    }

    /// Says how much work is left of a task that bars show parts of, by kind, and how many seconds a unit takes as estimated. The first
    /// call starts the task; a later one corrects the amounts. A task that `may_end_early` has at most this work left.
    pub fn set_work_left(
        &self,
        work: &[(WorkKind, f64)],
        seconds_per_unit: f64,
        may_end_early: bool,
    ) {
        let mut job = lock(&self.job);
        let job = job.get_or_insert_with(|| Job {
            work: <[KindOfWork; WorkKind::COUNT]>::default(),
            may_end_early,
            counted: Instant::now(),
        });
        job.may_end_early = may_end_early;
        job.counted = Instant::now();
        for of_kind in &mut job.work {
            of_kind.left = 0.0;
            of_kind.estimated = seconds_per_unit;
        }
        for (kind, work) in work {
            job.work[*kind as usize].left += work;
        }
    }

    /// Counts work of the task as done, where no bar does.
    pub fn advance(&self, kind: WorkKind, work: f64) {
        if let Some(job) = lock(&self.job).as_mut() {
            job.advance(kind, work);
        }
    }

    /// Takes work of the task off that need not be done.
    pub fn skip(&self, kind: WorkKind, work: f64) {
        if let Some(job) = lock(&self.job).as_mut() {
            let of_kind = &mut job.work[kind as usize];
            of_kind.left = (of_kind.left - work).max(0.0);
            job.counted = Instant::now();
        }
    }

    /// A progress bar that counts to `total`, with rate and time left. Of nothing, there is none.
    pub fn bar(&self, total: u64, label: impl Into<String>) -> Bar {
        self.new_bar(total, label.into(), BarStyle::Main)
    }

    /// As [`Self::bar`], for a part of something larger: without a terminal it prints nothing unless it takes long.
    pub fn minor_bar(&self, total: u64, label: impl Into<String>) -> Bar {
        self.new_bar(total, label.into(), BarStyle::Minor)
    }

    /// The label alone, for work that cannot be counted.
    pub fn busy(&self, label: impl Into<String>) -> Bar {
        self.new_bar(1, label.into(), BarStyle::Busy)
    }

    fn new_bar(&self, total: u64, label: String, style: BarStyle) -> Bar {
        let pace = Arc::new(Pace::new(total));
        let display = match &self.output {
            _ if total == 0 => BarDisplay::Hidden,
            Output::Hidden => BarDisplay::Hidden,
            Output::Terminal(bars) => {
                let bar = bars.add(ProgressBar::new(total));
                let (of_bar, job) = (Arc::clone(&pace), Arc::clone(&self.job));
                let template = if style == BarStyle::Busy {
                    "{prefix} ...{pace}{msg}"
                } else {
                    "{prefix} [{bar:12}] {human_pos}/{human_len}{pace}{msg}"
                };
                bar.set_style(
                    ProgressStyle::with_template(template)
                        .expect("the template is well formed")
                        .with_key(
                            "pace",
                            move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
                                // A key that cannot be written is left out.
                                let _ = out.write_str(&times(&of_bar, &job, true));
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
        *lock(&self.phase) = Some(label.clone());
        Bar {
            display,
            label,
            style,
            pace,
            message: Mutex::default(),
            job: Arc::clone(&self.job),
            phase: Arc::clone(&self.phase),
            work: None,
        }
    }

    /// `5 min left` of the task, or `at most 5 min left`, where it is known.
    pub fn time_left(&self) -> Option<String> {
        lock(&self.job).as_ref().and_then(Job::text)
    }

    /// The label of the bar that is shown.
    pub fn phase(&self) -> Option<String> {
        lock(&self.phase).clone()
    }

    /// Rings the terminal's bell: a long task has finished.
    pub fn ring_bell(&self) {
        if let Output::Terminal(_) = self.output {
            let _ = write!(io::stderr(), "\u{7}");
        }
    }

    /// Removes the bars: the process ends.
    pub fn hide_bars(&self) {
        if let Output::Terminal(bars) = &self.output {
            // What cannot be cleared stays.
            let _ = bars.clear();
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
    }

    /// Prints a line above the bars.
    pub fn note(&self, line: impl Display) {
        match &self.output {
            Output::Hidden => {}
            Output::Terminal(bars) => {
                let line = wrap(&line.to_string(), terminal_columns());
                bars.suspend(|| Stderr.line(&line));
            }
            Output::Lines(sink) => sink.line(&line.to_string()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BarStyle {
    Main,
    /// Without a terminal it prints nothing unless it takes long.
    Minor,
    /// As `Minor`, and without a count.
    Busy,
}

/// A progress bar; finished when dropped.
#[derive(Debug)]
pub struct Bar {
    display: BarDisplay,
    label: String,
    style: BarStyle,
    pace: Arc<Pace>,
    /// The text after the count.
    message: Mutex<String>,
    job: Arc<Mutex<Option<Job>>>,
    phase: Arc<Mutex<Option<String>>>,
    /// Work of the task that one item counts.
    work: Option<(WorkKind, f64)>,
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
    pub fn with_work(mut self, kind: WorkKind, work: f64) -> Self {
        self.work = Some((kind, work / self.pace.total.max(1) as f64));
        self
    }

    /// Adds `n` to the count.
    pub fn inc(&self, n: u64) {
        let done = self.pace.inc(n);
        if let Some((kind, work)) = self.work
            && let Some(job) = lock(&self.job).as_mut()
        {
            job.advance(kind, work * n as f64);
        }
        match &self.display {
            BarDisplay::Hidden => {}
            BarDisplay::Bar(bar) => bar.inc(n),
            BarDisplay::Lines { sink, last, .. } => {
                let Ok(mut last) = last.try_lock() else {
                    return;
                };
                if last.elapsed() >= LINE_INTERVAL && done < self.pace.total {
                    *last = Instant::now();
                    sink.line(&self.line(done));
                }
            }
        }
    }

    /// Sets the text after the count, such as the loss. In a terminal it is below the bar.
    pub fn message(&self, text: impl Display) {
        *lock(&self.message) = text.to_string();
        if let BarDisplay::Bar(bar) = &self.display {
            bar.set_message(format!("\n  {text}"));
        }
    }

    /// `audit 340/1,000 | 85/s, 8 s left`; with the duration once it has finished.
    fn line(&self, done: u64) -> String {
        let total = self.pace.total;
        let count = format!("{} {}/{}", self.label, HumanCount(done), HumanCount(total));
        let mut pace = times(&self.pace, &self.job, false);
        if done >= total {
            let seconds = self.pace.started.elapsed().as_secs_f64();
            pace += &format!(", took {}", format::duration(seconds));
        }
        let pace = pace.trim_start_matches([',', ';', ' ']).to_owned();
        let message = lock(&self.message).clone();
        let mut parts = vec![count, pace, message];
        parts.retain(|part| !part.is_empty());
        parts.join(" | ")
    }
}

/// `, 85/s, 8 s left; whole job: 5 min left`, without what is not known yet. In a terminal there is no room for the rate beside the job.
fn times(pace: &Pace, job: &Mutex<Option<Job>>, is_terminal: bool) -> String {
    let of_job = lock(job).as_ref().and_then(Job::text);
    let mut text = String::new();
    if let Some(rate) = pace.per_second()
        && !(is_terminal && of_job.is_some())
    {
        text += &format!(", {}", format::rate(rate));
    }
    if let Some(left) = pace.time_left() {
        text += &format!(", {} left", format::time_left(left));
    }
    if let Some(left) = of_job {
        text += &format!("; whole job: {left}");
    }
    text
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

/// The value of a mutex. A thread that panicked left a valid one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Bar {
    fn drop(&mut self) {
        let mut phase = lock(&self.phase);
        if phase.as_deref() == Some(&self.label) {
            *phase = None;
        }
        drop(phase);
        match &self.display {
            BarDisplay::Hidden => {}
            BarDisplay::Bar(bar) => bar.finish_and_clear(),
            BarDisplay::Lines { sink, .. } => {
                let took = self.pace.started.elapsed();
                if self.style == BarStyle::Main {
                    sink.line(&self.line(self.pace.done()));
                } else if took >= LINE_INTERVAL {
                    let took = format::duration(took.as_secs_f64());
                    sink.line(&format!("{}: took {took}", self.label));
                }
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
        let kind = WorkKind::Training;
        let mut bar = progress.bar(100, "train").with_work(kind, 200.0);
        let pace = Arc::get_mut(&mut bar.pace).unwrap();
        pace.started = ten_seconds_ago;
        assert_eq!(bar.line(0), "train 0/100");
        bar.inc(25);
        assert_eq!(bar.line(25), "train 25/100 | 2.5/s, 30 s left");

        // As estimated, a unit of work takes a second; as measured, 0.2 s.
        progress.set_work_left(&[(kind, 1000.0), (WorkKind::Audit, 60.0)], 1.0, false);
        let line = bar.line(25);
        assert_eq!(
            line,
            "train 25/100 | 2.5/s, 30 s left; whole job: 18 min left"
        );
        lock(&progress.job).as_mut().unwrap().counted = ten_seconds_ago;
        bar.inc(25);
        bar.message("loss 0.12");
        assert_eq!(
            bar.line(50),
            "train 50/100 | 5.0/s, 10 s left; whole job: 11 min left | loss 0.12"
        );
        lock(&progress.job).as_mut().unwrap().may_end_early = true;
        let left = progress.time_left();
        assert_eq!(left.as_deref(), Some("at most 11 min left"));
        progress.advance(kind, 950.0);
        progress.advance(WorkKind::Audit, 60.0);
        assert_eq!(progress.time_left(), None);
    }

    #[test]
    fn nothing_is_said_of_time_that_is_not_known() {
        let collected = Arc::new(CollectedLines::default());
        let progress = Progress::new(Output::Lines(collected.clone()));
        drop(progress.bar(0, "few-shot questions"));
        let bar = progress.minor_bar(8, "evaluation");
        assert_eq!(progress.phase().as_deref(), Some("evaluation"));
        assert_eq!(times(&bar.pace, &bar.job, true), "");
        drop(bar);
        assert_eq!(progress.phase(), None);
        assert!(collected.0.lock().unwrap().is_empty());
    }
}
