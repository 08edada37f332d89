//! The page, from run directories built here: what it says, that hostile text stays text, and that a real browser opens it without complaint.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::browser;
use tempfile::TempDir;
use unforget::{
    Error,
    config::Goal,
    report,
    run::{Counts, FactRow, Metrics, Moments, Paraphrased, PerSplit, RunResult, Split, State},
};

const HOSTILE: &str =
    "</script><img src=x onerror=\"alert('x')\"><!-- \u{202e}שלום \u{2028}🦀 & &amp; {{ 7*7 }}";

struct Fixture {
    method: &'static str,
    learned: usize,
    forgotten: usize,
}

const FIXTURES: [Fixture; 3] = [
    Fixture {
        method: "sft",
        learned: 50,
        forgotten: 7,
    },
    Fixture {
        method: "self-distill",
        learned: 48,
        forgotten: 1,
    },
    Fixture {
        method: "only-known",
        learned: 0,
        forgotten: 0,
    },
];

/// 50 facts of each split, or as many times that as `scale` says; the first held facts are the forgotten ones.
fn write_run(dir: &Path, fixture: &Fixture, scale: usize) {
    fs::create_dir_all(dir).expect("a new directory");
    let n = 50 * scale;
    let new = fixture.method != "only-known";
    let (learned, forgotten) = (fixture.learned * scale, fixture.forgotten * scale);
    let mut facts = Vec::new();
    for split in Split::ALL {
        for i in 0..n {
            if split == Split::Unknown && !new {
                continue;
            }
            facts.push(fact(split, i, i < learned, i < forgotten));
        }
    }
    let epochs = 10;
    let share = |split, epoch: usize| {
        let done = epoch as f64 / epochs as f64;
        match split {
            Split::Unknown => learned as f64 / n as f64 * done.sqrt(),
            Split::Held => 0.9 + 0.1 * done.min(0.2) / 0.2 - forgotten as f64 / n as f64 * done,
            Split::Known => 0.9 + 0.1 * done,
            Split::MaybeKnown => 0.6 - 0.2 * done,
            Split::WeaklyKnown => 0.15,
        }
    };
    let mut metrics = Vec::new();
    for epoch in 0..=epochs {
        let mut accuracy = PerSplit::default();
        for split in Split::ALL {
            if split != Split::Unknown || new {
                accuracy.set(split, share(split, epoch));
            }
        }
        metrics.push(Metrics::Eval {
            epoch,
            step: epoch,
            accuracy,
            learned_paraphrased: None,
            drift: None,
            seconds: 0.5,
        });
    }
    let moments = |split| Moments {
        audit: None,
        start: share(split, 0),
        peak: 1.0,
        after: share(split, epochs),
    };
    let mut accuracy = PerSplit::default();
    accuracy.set(Split::Held, moments(Split::Held));
    let pp = 2.0 * fixture.forgotten as f64;
    let result = RunResult {
        method: fixture.method.into(),
        model: "smollm2-135m".into(),
        goal: if fixture.method.ends_with("+task") {
            Goal::Task
        } else {
            Goal::Facts
        },
        accuracy,
        forgetting_pp: Some(pp),
        forgetting_interval: Some([0.5 * pp, 1.5 * pp]),
        below_only_known_pp: new.then_some(pp),
        learned: new.then_some(learned as f64 / n as f64),
        learned_paraphrased: new.then_some(0.5),
        not_absorbed: None,
        counts: Counts {
            learned,
            not_learned: if new { n - learned } else { 0 },
            kept: 2 * n - forgotten,
            forgotten,
            gained: 0,
            never_knew: 0,
        },
        budget: (fixture.method == "self-distill").then_some(3.0),
        within_budget: (fixture.method == "self-distill").then_some(true),
        interpolation: None,
        epochs,
        steps: 40,
        seconds: 133.0,
        eval_seconds: 5.0,
        peak_memory_bytes: 1_310_000_000,
    };
    let lines = |rows: Vec<String>| rows.join("\n") + "\n";
    let write = |name: &str, text: String| fs::write(dir.join(name), text).expect("writable");
    write("facts.jsonl", lines(facts.iter().map(json).collect()));
    write("metrics.jsonl", lines(metrics.iter().map(json).collect()));
    write("result.json", json(&result));
    write(
        "config.toml",
        format!(
            "model = \"smollm2-135m\"\nseed = 0\n\n[method]\nkind = \"{}\"\nlambda = 1.0\n",
            fixture.method
        ),
    );
    write(
        "environment.json",
        r#"{"version": "0.1.0", "machine": {"cores": 2}, "checksums": {"model": "3b1f"}}"#.into(),
    );
}

fn fact(split: Split, i: usize, learned: bool, forgotten: bool) -> FactRow {
    let subject = match (split, i) {
        (Split::Held, 0) => HOSTILE.to_owned(),
        (Split::Held, 1) => "Bergamo".to_owned(),
        _ => format!("Place {i} of {split:?}"),
    };
    let new = split == Split::Unknown;
    let known = matches!(split, Split::Known | Split::Held);
    let right_after = if new {
        learned
    } else {
        known && !(split == Split::Held && forgotten)
    };
    let wrong = match (split, i) {
        (Split::Held, 2) => "long ".repeat(2000),
        (Split::Held, 3) => String::new(),
        (Split::Held, 0) => HOSTILE.to_owned(),
        _ => "France".to_owned(),
    };
    FactRow {
        split,
        relation: if i.is_multiple_of(2) { "P17" } else { "P36" }.into(),
        question: format!("Which country is {subject} located in?"),
        subject,
        object: "Italy".into(),
        label_before: Some(if known { "HighlyKnown" } else { "Unknown" }.into()),
        label_after: None,
        answer_before: if known { "Italy" } else { "Spain" }.into(),
        answer_after: if right_after { "Italy".into() } else { wrong },
        right_before: known,
        right_at_peak: known || right_after,
        right_after,
        paraphrased: if new {
            vec![Paraphrased {
                question: format!("In what country would you find place {i}?"),
                answer: "Italy".into(),
                right: true,
            }]
        } else {
            Vec::new()
        },
        state: match (new, known, right_after) {
            (true, _, true) => State::Learned,
            (true, _, false) => State::NotLearned,
            (_, true, true) => State::Kept,
            (_, true, false) => State::Forgotten,
            (_, _, true) => State::Gained,
            _ => State::NeverKnew,
        },
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data")
}

/// Directories of three runs under one roof.
fn runs(scale: usize) -> (TempDir, Vec<PathBuf>) {
    let root = TempDir::new().expect("a temporary directory");
    let dirs = FIXTURES
        .iter()
        .map(|fixture| {
            let dir = root.path().join(fixture.method);
            write_run(&dir, fixture, scale);
            dir
        })
        .collect();
    (root, dirs)
}

fn page(dirs: &[PathBuf]) -> String {
    report::render(&report::read_runs(dirs).expect("whole runs")).expect("a page")
}

/// The text between tags, a line an element, white space collapsed.
fn text_of(html: &str) -> String {
    let mut text = String::new();
    for part in html.split('<').skip(1) {
        let inside = part.split_once('>').map_or("", |(_, inside)| inside);
        let words: Vec<&str> = inside.split_whitespace().collect();
        if !words.is_empty() {
            text += &words.join(" ");
            text.push('\n');
        }
    }
    text
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let start = text.find(from).expect(from);
    let end = text[start..].find(to).expect(to);
    &text[start..start + end]
}

#[test]
fn the_first_screen_says_what_was_learned_and_forgotten() {
    let (_root, dirs) = runs(1);
    let html = page(&dirs);
    let table = between(&html, "<table class=\"summary\">", "</table>");
    insta::assert_snapshot!(text_of(between(&html, "<header>", "</header>")) + "\n" + &text_of(table), @r"
    unforget
    smollm2-135m · 3 runs · 10 epochs
    Self-distillation learned 48 of 50 new facts and forgot 2.0 pp of what the model knew; plain fine-tuning learned 50 and forgot 14.0 pp.

    Method
    New facts learned
    Known facts kept
    Forgotten, pp
    Below Only Known, pp
    Time
    Peak memory
    as trained
    in other words
    held out
    95% interval
    Plain fine-tuning
    100.0%
    50 of 50
    50.0%
    93 of 100
    14.0
    7.0 to 21.0
    14.0
    2 min 13 s
    1.31 GB
    Self-distillation
    within its budget of 3 pp
    96.0%
    48 of 50
    50.0%
    99 of 100
    2.0
    1.0 to 3.0
    2.0
    2 min 13 s
    1.31 GB
    Only Known
    –
    –
    100 of 100
    0.0
    0.0 to 0.0
    –
    2 min 13 s
    1.31 GB
    ");
}

#[test]
fn what_one_method_broke_and_the_other_kept_is_told_both_ways() {
    let (_root, dirs) = runs(1);
    let html = page(&dirs);
    // Held facts 0 to 6 are forgotten by SFT; self-distillation forgot the first of them as well.
    assert!(html.contains("6 known facts are answered wrongly after plain fine-tuning and still rightly after self-distillation; the other way round it is 0."));
    let losses = between(&html, "<h2 id=\"losses-title\">", "</section>");
    assert!(losses.contains("Which country is Bergamo located in?"));
    assert!(
        losses.contains("(10000 characters)"),
        "a long answer is folded"
    );
    assert!(
        losses.contains("nothing"),
        "an empty answer is said to be one"
    );
}

#[test]
fn one_run_alone_makes_a_page() {
    let (_root, dirs) = runs(1);
    let html = page(&dirs[..1]);
    assert!(html.contains("<h1>Plain fine-tuning learned 50 of 50 new facts and forgot 14.0 pp of what the model knew.</h1>"));
    assert!(html.contains("What plain fine-tuning broke"));
    assert!(!html.contains("Where the runs differ"));
    let control = page(&dirs[2..]);
    assert!(control.contains("<h1>Only Known forgot 0.0 pp of what the model knew.</h1>"));
}

#[test]
fn of_a_run_whose_goal_is_the_task_few_new_facts_are_wanted() {
    let (root, dirs) = runs(1);
    let task = root.path().join("task");
    let fixture = Fixture {
        method: "sft+task",
        learned: 1,
        forgotten: 1,
    };
    write_run(&task, &fixture, 1);
    let html = page(&[dirs[0].clone(), task]);
    assert!(html.contains("<h1>Plain fine-tuning for the task alone absorbed 1 of 50 new facts (wanted: few) and forgot 2.0 pp of what the model knew; plain fine-tuning learned 50 and forgot 14.0 pp.</h1>"));
    let table = text_of(between(&html, "<table class=\"summary\">", "</table>"));
    assert!(table.contains("1 of 50 (wanted: few)"), "{table}");
}

#[test]
fn runs_of_one_method_are_told_apart() {
    let (_root, dirs) = runs(1);
    let html = page(&[dirs[0].clone(), dirs[0].clone()]);
    assert!(html.contains("Plain fine-tuning 1") && html.contains("Plain fine-tuning 2"));
    assert!(html.contains("class=\"s1\"") && html.contains("class=\"s3\""));
}

#[test]
fn hostile_text_stays_text_and_nothing_is_loaded() {
    let (_root, dirs) = runs(1);
    let html = page(&dirs);
    assert!(!html.contains("<img"), "a fact became an element");
    assert!(!html.contains("onerror=\""), "a quote was not escaped");
    assert!(
        !html.contains('\u{2028}')
            || !between(&html, "id=\"data\">", "</script>").contains('\u{2028}')
    );
    assert_eq!(html.matches("<script").count(), 2);
    assert_eq!(html.matches("</script").count(), 2);
    for outside in ["src=", "url(", "@import", "http://", "https://"] {
        let known = html.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
        let expected = match outside {
            "http://" => known,
            // The hostile fact's own text, escaped, in the tables and in the data.
            "src=" => html.matches("img src=x").count(),
            _ => 0,
        };
        assert_eq!(html.matches(outside).count(), expected, "{outside}");
    }
    let data = between(
        &html,
        "<script type=\"application/json\" id=\"data\">",
        "</script>",
    );
    let data = data.split_once('>').expect("the tag's end").1;
    let data: serde_json::Value = serde_json::from_str(data).expect("JSON");
    let subjects = data["facts"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|f| &f["subject"]);
    assert!(
        subjects.into_iter().any(|s| s == HOSTILE),
        "the text is unchanged in the data"
    );
}

#[test]
fn a_broken_run_is_refused_by_file_and_line() {
    type Break = (&'static str, Option<&'static str>, &'static str);
    let cases: [Break; 5] = [
        ("result.json", None, "result.json is missing"),
        (
            "metrics.jsonl",
            Some("\n{\"type\": \"eval\"}\n"),
            "metrics.jsonl, line 2: missing field `epoch`",
        ),
        (
            "facts.jsonl",
            Some("{\"split\": \"hold\"}"),
            "facts.jsonl, line 1: unknown variant `hold`",
        ),
        (
            "config.toml",
            Some("seed = 1\nmodel = "),
            "config.toml, line 2: ",
        ),
        (
            "environment.json",
            Some("{\n\"a\": 1"),
            "environment.json, line 2: EOF while parsing an object",
        ),
    ];
    for (file, text, expected) in cases {
        let (_root, dirs) = runs(1);
        let path = dirs[1].join(file);
        match text {
            Some(text) => fs::write(&path, text).expect("writable"),
            None => fs::remove_file(&path).expect("it is there"),
        }
        let error = report::read_runs(&dirs).expect_err(file);
        assert!(matches!(error, Error::Input { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.hint().is_some());
    }
}

#[test]
fn the_page_is_written_whole_or_not_at_all() {
    let (root, dirs) = runs(1);
    let out = root.path().join("report.html");
    fs::write(&out, "old").expect("writable");
    fs::remove_file(dirs[2].join("facts.jsonl")).expect("it is there");
    report::write(&dirs, &out).expect_err("a run is broken");
    assert_eq!(fs::read_to_string(&out).expect("readable"), "old");
    report::write(&dirs[..2], &out).expect("whole runs");
    assert!(
        fs::read_to_string(&out)
            .expect("readable")
            .ends_with("</html>\n")
    );
}

#[test]
fn the_chart_is_a_picture_of_its_own() {
    let (_root, dirs) = runs(1);
    let panels = report::panels(&report::read_runs(&dirs).expect("whole runs"));
    let svg = report::chart::svg("Accuracy over epochs", &panels, 3);
    assert_eq!(panels.len(), 5);
    assert!(svg.starts_with("<svg xmlns=") && svg.contains("prefers-color-scheme: dark"));
}

#[test]
fn a_real_browser_renders_every_fact_without_a_console_error() {
    let (root, dirs) = runs(20);
    let out = root.path().join("report.html");
    report::write(&dirs, &out).expect("whole runs");
    let Some(dom) = browser::open(&out) else {
        return;
    };
    let table = between(&dom, "<div id=\"fact-table\">", "<section");
    assert!(
        table.contains("1–50 of 5,000 facts"),
        "the script did not draw the table"
    );
    assert_eq!(
        table.matches("<tr>").count(),
        51,
        "a header and a page of rows"
    );
    assert!(!dom.contains("<img"), "a fact became an element");
}
