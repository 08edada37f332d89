//! Runs that are killed at any system call, meet a full or broken disk, or receive signals: they resume from the newest complete
//! checkpoint, with bitwise identical results.
//!
//! By default a sample of the faults is tested; all of them with `UNFORGET_FAULTS=all` (15 minutes).

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

use crate::{cli::MODEL, tools::require};

/// Training methods with different checkpoint contents.
const METHODS: [(&str, &[&str]); 8] = [
    ("sft", &["method.kind=sft"]),
    ("hidden", &["method.kind=self-distill"]),
    (
        "live",
        &["method.kind=self-distill", "method.teacher=online"],
    ),
    (
        "topk",
        &[
            "method.kind=self-distill",
            "method.vocab_subset={ top = 9 }",
            "method.teacher=topk",
            "method.decoys={}",
        ],
    ),
    ("ewc", &["method.kind=sft", "method.ewc={ strength = 1.0 }"]),
    (
        "lora",
        &[
            "method.kind=sft",
            "train.lora={ r = 3, target_modules = ['q_proj'] }",
        ],
    ),
    (
        "budget",
        &["method.kind=self-distill", "method.budget=50.0"],
    ),
    ("auto", &["method.kind=auto"]),
];

/// See `tests/faults/shim.c`.
const KINDS: [&str; 6] = ["kill", "torn", "eio", "enospc", "full", "short"];

/// A fault to inject: its kind, and the number of the call.
type Fault<'a> = Option<(&'a str, usize)>;

fn all_faults() -> bool {
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

/// A directory with facts, and one subdirectory per run.
struct Workspace(tempfile::TempDir);

impl Workspace {
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

    /// The command `unforget ARGS` with a fault below the directory of `run`.
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

    /// Three epochs of a method, with a checkpoint after each.
    fn tune(&self, method: &[&str], run: &Path, fault: Fault<'_>) -> Command {
        let out = run.to_str().unwrap();
        let mut args = vec!["tune", MODEL, "--learn", "learn.tsv", "--keep", "keep.tsv"];
        args.extend(["--held", "held.tsv", "--out", out, "--force"]);
        let sets = [
            "data.audit=false",
            "train.num_epochs=3",
            "train.batch_size=3",
            "train.learning_rate=1e-2",
            "train.save_every=1",
        ];
        for set in sets.iter().chain(method) {
            args.extend(["--set", set]);
        }
        self.command(&args, run, fault)
    }

    fn resume(&self, run: &Path, fault: Fault<'_>) -> Command {
        self.command(&["resume", run.to_str().unwrap()], run, fault)
    }

    /// Completes the run without faults, from its current state.
    fn finish(&self, method: &[&str], run: &Path) -> Output {
        if run.join("config.toml").is_file() {
            self.resume(run, None).output().unwrap()
        } else {
            self.tune(method, run, None).output().unwrap()
        }
    }
}

/// The files that must be bitwise identical: the model and the fact results.
fn result_files(run: &Path) -> [Vec<u8>; 2] {
    ["model/model.safetensors", "facts.jsonl"].map(|name| fs::read(run.join(name)).unwrap())
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Injects one fault into a new run, completes it without faults, and compares the result with `complete`.
fn check_fault(
    place: &Workspace,
    (name, method): (&str, &[&str]),
    (kind, at): (&str, usize),
    complete: &[Vec<u8>; 2],
) {
    let context = format!("{name}, {kind} at call {at}");
    let run = place.run("run");
    let _ = fs::remove_dir_all(&run);
    fs::create_dir(&run).unwrap();
    let broken = place.tune(method, &run, Some((kind, at))).output().unwrap();
    let was_killed = broken.status.code().is_none();
    match kind {
        "kill" | "torn" => assert!(was_killed, "{context}: {}", stderr_of(&broken)),
        // Short writes are continued.
        "short" => assert!(broken.status.success(), "{context}: {}", stderr_of(&broken)),
        // A failure is reported, unless it had no consequence.
        _ => assert!(
            broken.status.success()
                || (matches!(broken.status.code(), Some(1 | 2))
                    && stderr_of(&broken).contains("error: ")),
            "{context}: {:?} {}",
            broken.status,
            stderr_of(&broken)
        ),
    }
    // A second fault of the same kind while resuming.
    if !broken.status.success() && run.join("config.toml").is_file() {
        let _ = place
            .resume(&run, Some((kind, at / 2 + 1)))
            .output()
            .unwrap();
    }
    let finished = place.finish(method, &run);
    assert!(
        finished.status.success(),
        "{context}: {}",
        stderr_of(&finished)
    );
    assert!(
        result_files(&run) == *complete,
        "{context}: different result"
    );
    assert!(
        !run.join("checkpoints").exists(),
        "{context}: checkpoints are left"
    );
}

#[test]
fn a_run_killed_or_failing_at_any_call_resumes_bitwise_identically() {
    if require(shim(), "a C compiler").is_none() {
        return;
    }
    let mut tried = 0;
    for (i, method) in METHODS.into_iter().enumerate() {
        let place = Workspace::new();
        let clean = place.run("clean");
        let never = Some(("kill", 0));
        fs::create_dir(&clean).unwrap();
        let output = place.tune(method.1, &clean, never).output().unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            method.0,
            stderr_of(&output)
        );
        let complete = result_files(&clean);
        let count = fs::read_to_string(place.0.path().join("count")).unwrap();
        let calls: usize = count.trim().parse().unwrap();
        assert!(calls > 100, "{}: {calls} calls", method.0);
        // Each method samples different calls.
        let (first, every) = if all_faults() {
            (1, 1)
        } else {
            (1 + 5 * i, 41)
        };
        for (k, kind) in KINDS.into_iter().enumerate() {
            for at in (first + 3 * k..=calls).step_by(every) {
                check_fault(&place, method, (kind, at), &complete);
                tried += 1;
            }
        }
    }
    eprintln!("{tried} faults tried");
}

/// A run of a few seconds: many epochs on the same facts.
fn long_run(place: &Workspace, run: &Path, method: &[&str]) -> Command {
    let longer = ["train.num_epochs=60", "train.save_every=7"];
    place.tune(&[method, &longer].concat(), run, None)
}

/// Waits until the run has written this many rows of metrics.
fn wait_for_metrics(run: &Path, rows: usize) {
    let started = Instant::now();
    let metrics = run.join("metrics.jsonl");
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < rows {
        assert!(started.elapsed() < Duration::from_secs(60), "timed out");
        thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-s", name, &pid]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_run_killed_at_random_moments_resumes_bitwise_identically() {
    let rounds = if all_faults() { 40 } else { 2 };
    let mut killed = 0;
    for (name, method) in METHODS {
        let place = Workspace::new();
        let (clean, run) = (place.run("clean"), place.run("run"));
        let started = Instant::now();
        assert!(long_run(&place, &clean, method).status().unwrap().success());
        let duration = started.elapsed();
        let complete = result_files(&clean);
        for round in 0..rounds {
            let _ = fs::remove_dir_all(&run);
            let mut child = long_run(&place, &run, method).spawn().unwrap();
            // Spread over the run by the golden ratio.
            let moment = (0.618_034 * f64::from(round + 1)).fract();
            thread::sleep(duration.mul_f64(moment));
            let _ = child.kill();
            killed += usize::from(child.wait().unwrap().code().is_none());
            let finished = if run.join("config.toml").is_file() {
                place.resume(&run, None).output().unwrap()
            } else {
                long_run(&place, &run, method).output().unwrap()
            };
            assert!(
                finished.status.success(),
                "{name}: {}",
                stderr_of(&finished)
            );
            assert!(
                result_files(&run) == complete,
                "{name}, killed at {moment:.2}: different result"
            );
        }
    }
    eprintln!("{killed} runs killed");
}

#[test]
fn ctrl_c_and_sigterm_leave_a_checkpoint_and_say_how_to_resume() {
    let place = Workspace::new();
    let (clean, run) = (place.run("clean"), place.run("run"));
    let method = METHODS[1].1;
    assert!(long_run(&place, &clean, method).status().unwrap().success());
    for name in ["INT", "TERM"] {
        let _ = fs::remove_dir_all(&run);
        let child = long_run(&place, &run, method).spawn().unwrap();
        wait_for_metrics(&run, 12);
        signal(&child, name);
        let stopped = child.wait_with_output().unwrap();
        assert_eq!(
            stopped.status.code(),
            Some(130),
            "{name}: {}",
            stderr_of(&stopped)
        );
        let how = format!("continue with `unforget resume {}`", run.display());
        assert!(
            stderr_of(&stopped).contains(&how),
            "{name}: {}",
            stderr_of(&stopped)
        );
        assert!(fs::read_dir(run.join("checkpoints")).unwrap().count() > 0);
        let finished = place.resume(&run, None).output().unwrap();
        assert!(
            finished.status.success(),
            "{name}: {}",
            stderr_of(&finished)
        );
        assert!(
            result_files(&run) == result_files(&clean),
            "{name}: different result"
        );
    }
}

#[test]
fn sighup_does_not_stop_a_run() {
    let place = Workspace::new();
    let run = place.run("run");
    let child = long_run(&place, &run, METHODS[0].1).spawn().unwrap();
    wait_for_metrics(&run, 12);
    signal(&child, "HUP");
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", stderr_of(&ended));
}

#[test]
fn two_processes_cannot_write_one_run_and_a_dead_one_releases_its_lock() {
    let place = Workspace::new();
    let run = place.run("run");
    let mut child = long_run(&place, &run, METHODS[0].1).spawn().unwrap();
    wait_for_metrics(&run, 12);
    // It holds its lock and does not end meanwhile.
    signal(&child, "STOP");
    for second in [
        place.resume(&run, None),
        long_run(&place, &run, METHODS[0].1),
    ] {
        let mut second = second;
        let refused = second.output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{}", stderr_of(&refused));
        assert!(
            stderr_of(&refused).contains("another process is writing the run"),
            "{}",
            stderr_of(&refused)
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let finished = place.resume(&run, None).output().unwrap();
    assert!(finished.status.success(), "{}", stderr_of(&finished));
}
