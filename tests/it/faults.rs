//! What a run does when it is killed at any call, when the disk is full or broken, and when signals come: it goes on from its
//! newest whole checkpoint to the same bits.
//!
//! A sample of the faults by default; all of them with `UNFORGET_FAULTS=all` (a quarter of an hour).

#![cfg(target_os = "linux")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use assert_cmd::cargo::cargo_bin;

use crate::cli::MODEL;

/// Every way of training that keeps other things in a checkpoint.
const METHODS: [(&str, &[&str]); 8] = [
    ("sft", &["method.kind=sft"]),
    ("hidden", &["method.teacher=hidden"]),
    ("live", &["method.teacher=live"]),
    (
        "topk",
        &[
            "method.tokens={ top = 9 }",
            "method.teacher=topk",
            "method.decoys={}",
        ],
    ),
    ("ewc", &["method.kind=sft", "method.ewc={ strength = 1.0 }"]),
    (
        "lora",
        &[
            "method.kind=sft",
            "train.lora={ rank = 3, targets = ['q_proj'] }",
        ],
    ),
    ("budget", &["method.budget=50.0"]),
    ("average", &["method.kind=sft", "train.average=0.9"]),
];

/// See `tests/faults/shim.c`.
const KINDS: [&str; 6] = ["kill", "torn", "eio", "enospc", "full", "short"];

/// A fault to inject: its kind, and at which call.
type Fault<'a> = Option<(&'a str, usize)>;

fn all_of_them() -> bool {
    std::env::var("UNFORGET_FAULTS").is_ok_and(|which| which == "all")
}

/// The shim, compiled once; none where there is no C compiler.
fn shim() -> Option<&'static Path> {
    static SHIM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let shim = SHIM.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shim.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/shim.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([out.as_path(), Path::new(source)])
            .arg("-ldl")
            .status();
        built.is_ok_and(|status| status.success()).then_some(out)
    });
    shim.as_deref()
}

/// A folder of facts, and one below it for each run.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        for (name, count) in [("learn", 5), ("keep", 4), ("held", 6)] {
            let countries = ["Italy", "Norway", "Peru"].iter().cycle().take(count);
            let rows = countries.enumerate();
            let rows = rows.map(|(i, country)| format!("{name} town {i}\tP17\t{country}\n"));
            let text = format!("subject\trelation\tobject\n{}", rows.collect::<String>());
            fs::write(place.path().join(format!("{name}.tsv")), text).unwrap();
        }
        Self(place)
    }

    fn run(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `unforget`, about to do `args`, with a fault below the folder of `run`.
    fn command(&self, args: &[&str], run: &Path, fault: Fault<'_>) -> Command {
        let mut command = Command::new(cargo_bin("unforget"));
        command
            .current_dir(self.0.path())
            .env("XDG_CACHE_HOME", self.0.path().join("cache"))
            .args(args)
            .args(["--threads", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some((kind, at)) = fault {
            command
                .env("LD_PRELOAD", shim().expect("looked at before"))
                .env("FAULT_BELOW", run)
                .env("FAULT_KIND", kind)
                .env("FAULT_AT", at.to_string())
                .env("FAULT_COUNT", self.0.path().join("count"));
        }
        command
    }

    /// Three epochs of a method, a checkpoint after each.
    fn tune(&self, method: &[&str], run: &Path, fault: Fault<'_>) -> Command {
        let out = run.to_str().unwrap();
        let mut args = vec!["tune", MODEL, "--learn", "learn.tsv", "--keep", "keep.tsv"];
        args.extend(["--held", "held.tsv", "--out", out, "--force"]);
        let sets = [
            "data.audit=false",
            "train.epochs=3",
            "train.batch_size=3",
            "train.lr=1e-2",
            "train.checkpoint_every=1",
        ];
        for set in sets.iter().chain(method) {
            args.extend(["--set", set]);
        }
        self.command(&args, run, fault)
    }

    fn resume(&self, run: &Path, fault: Fault<'_>) -> Command {
        self.command(&["resume", run.to_str().unwrap()], run, fault)
    }

    /// Runs on without faults, from whatever is there, to the end.
    fn finish(&self, method: &[&str], run: &Path) -> Output {
        if run.join("config.toml").is_file() {
            self.resume(run, None).output().unwrap()
        } else {
            self.tune(method, run, None).output().unwrap()
        }
    }
}

/// What must be the same to the bit: the model, and what became of each fact.
fn outcome(run: &Path) -> [Vec<u8>; 2] {
    ["model/model.safetensors", "facts.jsonl"].map(|name| fs::read(run.join(name)).unwrap())
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Injects one fault into a run of its own, then goes on without; whether the fault came to anything.
fn survives(
    place: &Place,
    (name, method): (&str, &[&str]),
    (kind, at): (&str, usize),
    whole: &[Vec<u8>; 2],
) {
    let what = format!("{name}, {kind} at call {at}");
    let run = place.run("run");
    let _ = fs::remove_dir_all(&run);
    fs::create_dir(&run).unwrap();
    let broken = place.tune(method, &run, Some((kind, at))).output().unwrap();
    let was_killed = broken.status.code().is_none();
    match kind {
        "kill" | "torn" => assert!(was_killed, "{what}: {}", told(&broken)),
        // A process that writes on is not disturbed.
        "short" => assert!(broken.status.success(), "{what}: {}", told(&broken)),
        // What fails is said, unless it was of no consequence.
        _ => assert!(
            broken.status.success()
                || (matches!(broken.status.code(), Some(1 | 2))
                    && told(&broken).contains("error: ")),
            "{what}: {:?} {}",
            broken.status,
            told(&broken)
        ),
    }
    // A second fault of the same kind, on the way back.
    if !broken.status.success() && run.join("config.toml").is_file() {
        let _ = place
            .resume(&run, Some((kind, at / 2 + 1)))
            .output()
            .unwrap();
    }
    let finished = place.finish(method, &run);
    assert!(finished.status.success(), "{what}: {}", told(&finished));
    assert!(outcome(&run) == *whole, "{what}: other bits");
    assert!(
        !run.join("checkpoints").exists(),
        "{what}: checkpoints are left"
    );
}

#[test]
fn a_run_that_is_killed_or_cannot_write_at_any_call_goes_on_to_the_same_bits() {
    if shim().is_none() {
        eprintln!("there is no C compiler for the shim: skipped");
        return;
    }
    let mut tried = 0;
    for (i, method) in METHODS.into_iter().enumerate() {
        let place = Place::new();
        let clean = place.run("clean");
        let never = Some(("kill", 0));
        fs::create_dir(&clean).unwrap();
        let output = place.tune(method.1, &clean, never).output().unwrap();
        assert!(output.status.success(), "{}: {}", method.0, told(&output));
        let whole = outcome(&clean);
        let count = fs::read_to_string(place.0.path().join("count")).unwrap();
        let calls: usize = count.trim().parse().unwrap();
        assert!(calls > 100, "{}: {calls} calls", method.0);
        // Of the sample every method has other calls.
        let (first, every) = if all_of_them() {
            (1, 1)
        } else {
            (1 + 5 * i, 41)
        };
        for (k, kind) in KINDS.into_iter().enumerate() {
            for at in (first + 3 * k..=calls).step_by(every) {
                survives(&place, method, (kind, at), &whole);
                tried += 1;
            }
        }
    }
    eprintln!("{tried} faults tried");
}

/// A run that takes a few seconds: many epochs on the same facts.
fn long(place: &Place, run: &Path, method: &[&str]) -> Command {
    let longer = ["train.epochs=60", "train.checkpoint_every=7"];
    place.tune(&[method, &longer].concat(), run, None)
}

/// Waits until the run has written so many rows of metrics.
fn wait_for_metrics(run: &Path, rows: usize) {
    let started = Instant::now();
    let metrics = run.join("metrics.jsonl");
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < rows {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "it never got there"
        );
        thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-s", name, &pid]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_run_that_is_killed_at_random_moments_goes_on_to_the_same_bits() {
    let rounds = if all_of_them() { 40 } else { 2 };
    let mut killed = 0;
    for (name, method) in METHODS {
        let place = Place::new();
        let (clean, run) = (place.run("clean"), place.run("run"));
        let started = Instant::now();
        assert!(long(&place, &clean, method).status().unwrap().success());
        let duration = started.elapsed();
        let whole = outcome(&clean);
        for round in 0..rounds {
            let _ = fs::remove_dir_all(&run);
            let mut child = long(&place, &run, method).spawn().unwrap();
            // Spread over the run by the golden ratio.
            let moment = (0.618_034 * f64::from(round + 1)).fract();
            thread::sleep(duration.mul_f64(moment));
            let _ = child.kill();
            killed += usize::from(child.wait().unwrap().code().is_none());
            let finished = if run.join("config.toml").is_file() {
                place.resume(&run, None).output().unwrap()
            } else {
                long(&place, &run, method).output().unwrap()
            };
            assert!(finished.status.success(), "{name}: {}", told(&finished));
            assert!(
                outcome(&run) == whole,
                "{name}, killed at {moment:.2}: other bits"
            );
        }
    }
    eprintln!("{killed} runs killed");
}

#[test]
fn ctrl_c_and_a_termination_signal_leave_a_checkpoint_and_say_how_to_go_on() {
    let place = Place::new();
    let (clean, run) = (place.run("clean"), place.run("run"));
    let method = METHODS[1].1;
    assert!(long(&place, &clean, method).status().unwrap().success());
    for name in ["INT", "TERM"] {
        let _ = fs::remove_dir_all(&run);
        let child = long(&place, &run, method).spawn().unwrap();
        wait_for_metrics(&run, 12);
        signal(&child, name);
        let stopped = child.wait_with_output().unwrap();
        assert_eq!(
            stopped.status.code(),
            Some(130),
            "{name}: {}",
            told(&stopped)
        );
        let how = format!("go on with `unforget resume {}`", run.display());
        assert!(told(&stopped).contains(&how), "{name}: {}", told(&stopped));
        assert!(fs::read_dir(run.join("checkpoints")).unwrap().count() > 0);
        let finished = place.resume(&run, None).output().unwrap();
        assert!(finished.status.success(), "{name}: {}", told(&finished));
        assert!(outcome(&run) == outcome(&clean), "{name}: other bits");
    }
}

#[test]
fn a_terminal_that_goes_away_stops_nothing() {
    let place = Place::new();
    let run = place.run("run");
    let child = long(&place, &run, METHODS[0].1).spawn().unwrap();
    wait_for_metrics(&run, 12);
    signal(&child, "HUP");
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", told(&ended));
}

#[test]
fn two_processes_do_not_write_one_run_and_a_dead_one_keeps_nobody_out() {
    let place = Place::new();
    let run = place.run("run");
    let mut child = long(&place, &run, METHODS[0].1).spawn().unwrap();
    wait_for_metrics(&run, 12);
    for second in [place.resume(&run, None), long(&place, &run, METHODS[0].1)] {
        let mut second = second;
        let refused = second.output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{}", told(&refused));
        assert!(
            told(&refused).contains("another process is writing the run"),
            "{}",
            told(&refused)
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let finished = place.resume(&run, None).output().unwrap();
    assert!(finished.status.success(), "{}", told(&finished));
}
