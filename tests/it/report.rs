//! The report page of run directories built here: its content, escaping of hostile text, and its behaviour in a real browser.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::browser;
use tempfile::TempDir;
use unforget::{
    Error,
    config::Goal,
    measure::{Forgotten, Neighbour},
    report,
    run::{
        AccuracyStages, Counts, FactOutcome, FactResult, Metrics, ParaphraseResult, PerSplit,
        RecordedRun, RunResult, Split,
    },
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
    let accuracy_at = |split, epoch: usize| {
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
                accuracy.set(split, accuracy_at(split, epoch));
            }
        }
        metrics.push(Metrics::Eval {
            epoch,
            step: epoch,
            accuracy,
            learned_paraphrased: None,
            drift: None,
            grad_norms: None,
            behaviour: None,
            validation_loss: None,
            seconds: 0.5,
        });
    }
    let stages = |split| AccuracyStages {
        audit: None,
        start: accuracy_at(split, 0),
        peak: 1.0,
        after: accuracy_at(split, epochs),
    };
    let mut accuracy = PerSplit::default();
    accuracy.set(Split::Held, stages(Split::Held));
    let pp = 2.0 * fixture.forgotten as f64;
    let result = RunResult {
        method: fixture.method.into(),
        preset: None,
        model: "smollm2-135m".into(),
        goal: if fixture.method.ends_with("+task") {
            Goal::Task
        } else {
            Goal::Facts
        },
        accuracy,
        forgotten: Forgotten::new(forgotten, n),
        only_known_forgotten: Forgotten::new(0, n).filter(|_| new),
        gap_to_only_known_pp: new.then_some(pp),
        gap_to_only_known_interval: new.then_some([0.5 * pp, 1.5 * pp]),
        forgetting_pp: Some(pp),
        forgetting_interval: Some([0.5 * pp, 1.5 * pp]),
        learned: new.then_some(learned as f64 / n as f64),
        learned_paraphrased: new.then_some(0.5),
        not_absorbed: None,
        behaviour: None,
        validation_loss: None,
        validation: None,
        texts_loss: None,
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
        audit_seconds: 0.0,
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
    write("environment.json", environment("3b1f"));
}

fn fact(split: Split, i: usize, learned: bool, forgotten: bool) -> FactResult {
    let subject = match (split, i) {
        (Split::Held, 0) => HOSTILE.to_owned(),
        (Split::Held, 1) => "Bergamo".to_owned(),
        _ => format!("Place {i} of {split:?}"),
    };
    let new = split == Split::Unknown;
    let known = matches!(split, Split::Known | Split::Held);
    let correct_after = if new {
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
    FactResult {
        split,
        relation: if i.is_multiple_of(2) { "P17" } else { "P36" }.into(),
        question: format!("Which country is {subject} located in?"),
        subject,
        object: "Italy".into(),
        label_before: Some(if known { "HighlyKnown" } else { "Unknown" }.into()),
        label_after: None,
        few_shot_accuracy: Some(if known { 1.0 } else { 0.0 }),
        answer_before: if known { "Italy" } else { "Spain" }.into(),
        answer_after: if correct_after { "Italy".into() } else { wrong },
        correct_before: known,
        correct_at_start: known && !i.is_multiple_of(5),
        correct_at_peak: known || correct_after,
        correct_after,
        forgotten_once: i == 8,
        p_before: Some(if known { 0.9 } else { 0.01 }),
        p_after: Some(if correct_after { 0.95 } else { 0.02 }),
        nearest: if new {
            Vec::new()
        } else {
            vec![Neighbour {
                subject: format!("Place {i} of Unknown"),
                object: "France".into(),
                cosine: 0.75,
            }]
        },
        pca: Some([i as f32, (i * i % 7) as f32]),
        drift: None,
        paraphrases: if new {
            vec![ParaphraseResult {
                question: format!("In what country would you find place {i}?"),
                answer: "Italy".into(),
                correct: true,
            }]
        } else {
            Vec::new()
        },
        outcome: match (new, known, correct_after) {
            (true, _, true) => FactOutcome::Learned,
            (true, _, false) => FactOutcome::NotLearned,
            (_, true, true) => FactOutcome::Kept,
            (_, true, false) => FactOutcome::Forgotten,
            (_, _, true) => FactOutcome::Gained,
            _ => FactOutcome::NeverKnew,
        },
    }
}

/// `environment.json` of a run of the base model with this checksum.
fn environment(checksum: &str) -> String {
    json(&serde_json::json!({
        "version": "0.1.0", "system": "linux x86_64", "cpu": "test", "threads": 2, "device": "cpu", "seed": 0,
        "model": { "name": "smollm2-135m", "path": "/models/m.gguf", "checksum": checksum, "parameters": 1 }, "data": {},
    }))
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
    report::render(&RecordedRun::read_all(dirs).expect("whole runs")).expect("a page")
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
fn the_first_screen_shows_learning_and_forgetting() {
    let (_root, dirs) = runs(1);
    let html = page(&dirs);
    let table = between(&html, "<table class=\"summary\">", "</table>");
    insta::assert_snapshot!(text_of(between(&html, "<header>", "</header>")) + "\n" + &text_of(table), @r"
    unforget
    smollm2-135m · 3 runs · 10 epochs
    Self-distillation learned 48 of 50 new facts and forgot 1 of 50 known facts; plain fine-tuning learned 50 and forgot 7.

    Method
    New facts learned
    Known held-out facts forgotten
    Learned, para&shy;phrased
    Time
    Peak memory
    at the end
    gap to Only Known, pp
    since best epoch, pp
    Plain fine-tuning
    50 of 50
    100.0%
    7 of 50
    14.0% (7.0 to 26.2)
    14.0
    (7.0 to 21.0)
    14.0
    50.0%
    2 min 13 s
    1.31 GB
    Self-distillation
    within its budget of 3 pp
    48 of 50
    96.0%
    1 of 50
    2.0% (0.4 to 10.5)
    2.0
    (1.0 to 3.0)
    2.0
    50.0%
    2 min 13 s
    1.31 GB
    Only Known
    –
    0 of 50
    up to 6.0%
    –
    0.0
    –
    2 min 13 s
    1.31 GB
    ");
}

#[test]
fn facts_forgotten_by_one_method_only_are_listed() {
    let (_root, dirs) = runs(1);
    let html = page(&dirs);
    // Held facts 0 to 6 are forgotten by SFT; self-distillation forgot the first of them as well.
    assert!(html.contains("6 facts of all splits, 6 of them held out, were correct before, are wrong after plain fine-tuning and correct after self-distillation. The reverse is true of 0."));
    let forgotten = between(&html, "<h2 id=\"forgotten-title\">", "</section>");
    assert!(forgotten.contains("Which country is Bergamo located in?"));
    assert!(
        forgotten.contains("(10000 characters)"),
        "a long answer is folded"
    );
    assert!(forgotten.contains("empty"), "an empty answer is marked");
}

#[test]
fn one_run_alone_makes_a_page() {
    let (_root, dirs) = runs(1);
    let html = page(&dirs[..1]);
    assert!(html.contains(
        "<h1>Plain fine-tuning learned 50 of 50 new facts and forgot 7 of 50 known facts.</h1>"
    ));
    assert!(html.contains("Facts forgotten by plain fine-tuning"));
    assert!(!html.contains("Settings that differ"));
    let control = page(&dirs[2..]);
    assert!(control.contains("<h1>Only Known forgot 0 of 50 known facts.</h1>"));
}

#[test]
fn a_task_run_should_learn_few_new_facts() {
    let (root, dirs) = runs(1);
    let task = root.path().join("task");
    let fixture = Fixture {
        method: "sft+task",
        learned: 1,
        forgotten: 1,
    };
    write_run(&task, &fixture, 1);
    let html = page(&[dirs[0].clone(), task]);
    assert!(html.contains("<h1>Plain fine-tuning with goal = task absorbed 1 of 50 new facts (should be few) and forgot 1 of 50 known facts; plain fine-tuning learned 50 and forgot 7.</h1>"));
    let table = text_of(between(&html, "<table class=\"summary\">", "</table>"));
    assert!(table.contains("1 of 50 (should be few)"), "{table}");
}

#[test]
fn a_table_of_examples_says_so_where_it_is_a_selection() {
    let root = TempDir::new().expect("a temporary directory");
    let with = |forgotten: usize| {
        let dir = root.path().join(forgotten.to_string());
        let fixture = Fixture {
            method: "sft",
            learned: 50,
            forgotten,
        };
        write_run(&dir, &fixture, 1);
        page(&[dir])
    };
    assert!(!with(7).contains(" of them:"));
    assert!(with(20).contains("<p>12 of them:</p>"));
}

#[test]
fn runs_of_one_method_are_told_apart() {
    let (root, dirs) = runs(1);
    let other = root.path().join("other");
    let fixture = Fixture {
        method: "sft",
        learned: 1,
        forgotten: 1,
    };
    write_run(&other, &fixture, 1);
    let html = page(&[dirs[0].clone(), other]);
    let first = dirs[0].file_name().expect("a name").display();
    assert!(html.contains(&format!("Plain fine-tuning ({first})")));
    assert!(html.contains("Plain fine-tuning (other)"));
    assert!(html.contains("class=\"s1\"") && html.contains("class=\"s3\""));
}

#[test]
fn runs_that_cannot_be_compared_get_a_note() {
    let (_root, dirs) = runs(1);
    assert!(!page(&dirs).contains("class=\"note\""));
    let edit = |run: usize, file: &str, edit: &dyn Fn(String) -> String| {
        let path = dirs[run].join(file);
        let text = fs::read_to_string(&path).expect("it is there");
        fs::write(path, edit(text)).expect("writable");
    };
    edit(1, "environment.json", &|_| environment("77aa"));
    assert!(page(&dirs).contains("These runs start from different base models"));
    let other = |text: String| text.replace("Place 9 of Held", "Another place");
    edit(2, "facts.jsonl", &other);
    let html = page(&dirs);
    assert_eq!(html.matches("class=\"note\"").count(), 2);
    assert!(html.contains("These runs hold out different facts"));
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
fn a_broken_run_is_an_error_with_file_and_line() {
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
        let error = RecordedRun::read_all(&dirs).expect_err(file);
        assert!(matches!(error, Error::Input { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.hint().is_some());
    }
}

#[test]
fn the_page_is_written_atomically() {
    let (root, dirs) = runs(1);
    let out = root.path().join("report.html");
    fs::write(&out, "old").expect("writable");
    fs::remove_file(dirs[2].join("facts.jsonl")).expect("it is there");
    report::write(&dirs, &out, None).expect_err("a run is broken");
    assert_eq!(fs::read_to_string(&out).expect("readable"), "old");
    report::write(&dirs[..2], &out, None).expect("whole runs");
    assert!(
        fs::read_to_string(&out)
            .expect("readable")
            .ends_with("</html>\n")
    );
}

#[test]
fn a_chart_can_be_a_file_of_its_own() {
    let (_root, dirs) = runs(1);
    let panels = report::accuracy(&RecordedRun::read_all(&dirs).expect("whole runs"));
    let svg = report::chart::svg("Accuracy over epochs", &panels, 3);
    assert_eq!(panels.len(), 5);
    assert!(svg.starts_with("<svg xmlns=") && svg.contains("prefers-color-scheme: dark"));
}

#[test]
fn every_control_of_the_page_works_in_a_browser() {
    let (root, dirs) = runs(20);
    let out = root.path().join("report.html");
    report::write(&dirs, &out, None).expect("whole runs");
    let Some(page) = browser::open(&out) else {
        return;
    };
    // By keyboard: the first stop leads to the result.
    page.press(&["Tab"]);
    assert_eq!(page.text(":focus"), "Skip to the result");

    let status = || page.text("#fact-table [role=status]");
    assert_eq!(status(), "1–50 of 5,000 facts");
    assert_eq!(
        page.eval("document.querySelectorAll('#fact-table tbody tr').length"),
        50
    );

    // Pages.
    let press = |words: &str| {
        page.eval(&format!(
            "[...document.querySelectorAll('button')].find(b => b.textContent === {words:?}).click()"
        ));
    };
    press("Next");
    assert_eq!(status(), "51–100 of 5,000 facts");
    press("Previous");
    assert_eq!(status(), "1–50 of 5,000 facts");

    // Every filter, on every value that it offers.
    let filters = page.eval("[...document.querySelectorAll('.controls select')].length");
    assert_eq!(filters, 6, "group, relation, label, three runs");
    let counts = page.eval(
        "[...document.querySelectorAll('.controls select')].map(select => [...select.options].map(option => {
            select.value = option.value;
            select.dispatchEvent(new Event('change'));
            const found = document.querySelector('#fact-table [role=status]').textContent;
            select.value = '';
            select.dispatchEvent(new Event('change'));
            return Number((found.match(/of ([\\d,]+) facts/)?.[1] ?? '0').replace(',', ''));
        }))",
    );
    for counts in counts.as_array().expect("a list a filter") {
        let counts: Vec<i64> = counts
            .as_array()
            .expect("counts")
            .iter()
            .map(|n| n.as_i64().expect("a count"))
            .collect();
        assert!(
            counts.len() > 1 && counts.iter().all(|n| *n > 0),
            "{counts:?}"
        );
        assert_eq!(counts[0], 5000, "the first value is all");
    }
    let sft = "document.querySelectorAll('.controls select')[3]";
    for state in ["learned", "kept", "forgotten", "relearned"] {
        let offered = page.eval(&format!(
            "[...{sft}.options].some(o => o.value === {state:?})"
        ));
        assert_eq!(offered, true, "{state}");
    }

    // The search, by keyboard.
    page.eval("document.querySelector('input[type=search]').focus()");
    page.press(&["B", "e", "r", "g", "a", "m", "o"]);
    page.eval("new Promise(done => setTimeout(done, 400))");
    assert_eq!(status(), "1–1 of 1 facts");
    assert!(page.text("#fact-table tbody").contains("Bergamo"));
    assert!(
        page.text("#fact-table .near")
            .contains("Place 1 of Unknown → France 0.75")
    );
    page.eval("(s => { s.value = ''; s.dispatchEvent(new Event('input')); })(document.querySelector('input[type=search]'))");
    page.eval("new Promise(done => setTimeout(done, 400))");

    // Every column's order, both ways.
    let sorted = page.eval(
        "[...document.querySelectorAll('#fact-table th button')].map(button => [1, 2].map(() => {
            button.click();
            return button.closest('th').getAttribute('aria-sort') + document.querySelector('#fact-table tbody tr').textContent.length;
        }))",
    );
    let sorted = sorted.as_array().expect("a pair a column");
    assert_eq!(sorted.len(), 10);
    for pair in sorted {
        let begins = |i: usize, with: &str| pair[i].as_str().is_some_and(|s| s.starts_with(with));
        assert!(begins(0, "ascending") && begins(1, "descending"), "{pair}");
    }

    // The shortcut to what was lost.
    press("Show them in the table below");
    assert_eq!(status(), "1–50 of 120 facts");

    // Everything that unfolds: paraphrased new facts, and the settings of the runs.
    let unfolded = page.eval(
        "(() => {
            for (const select of document.querySelectorAll('.controls select')) {
                select.value = select === document.querySelector('.controls select') ? 'New, trained' : '';
                select.dispatchEvent(new Event('change'));
            }
            return [...document.querySelectorAll('summary')].map(s => { s.click(); return s.parentElement.open; });
        })()",
    );
    let unfolded = unfolded.as_array().expect("a list");
    assert_eq!(unfolded.len(), 50 + 3);
    assert!(unfolded.iter().all(|open| open == true), "{unfolded:?}");

    // Nothing is wider than the screen but what scrolls on its own.
    for width in [360, 768, 1280] {
        for dark in [false, true] {
            page.set_viewport(width, dark);
            let spill = page.eval("document.documentElement.scrollWidth - window.innerWidth");
            assert!(spill.as_i64().is_some_and(|px| px <= 0), "{width}: {spill}");
            if let Ok(folder) = std::env::var("UNFORGET_PICTURES") {
                let name = format!("report-{width}{}.png", if dark { "-dark" } else { "" });
                fs::write(PathBuf::from(folder).join(name), page.screenshot()).expect("writable");
            }
        }
    }
    assert!(
        !page.document().contains("<img"),
        "a fact became an element"
    );
    page.assert_empty_console();
}

#[test]
fn fifty_thousand_facts_do_not_freeze_the_page() {
    let (root, dirs) = runs(200);
    let out = root.path().join("report.html");
    report::write(&dirs[..1], &out, None).expect("whole runs");
    let Some(page) = browser::open(&out) else {
        return;
    };
    assert_eq!(
        page.text("#fact-table [role=status]"),
        "1–50 of 50,000 facts"
    );
    // Sorting is the slowest of all: far below what a reader would take for a standstill, even on a busy machine.
    let milliseconds = page.eval(
        "(() => { const begun = performance.now(); document.querySelector('#fact-table th button').click(); return performance.now() - begun; })()",
    );
    assert!(
        milliseconds.as_f64().is_some_and(|ms| ms < 3000.0),
        "{milliseconds}"
    );
    page.assert_empty_console();
}

#[test]
fn a_bundle_has_the_page_and_its_data() {
    let (root, dirs) = runs(1);
    let (out, bundle) = (root.path().join("report.html"), root.path().join("b.zip"));
    report::write(&dirs, &out, Some(&bundle)).expect("whole runs");
    let archive = fs::File::open(&bundle).expect("it is there");
    let mut archive = zip::ZipArchive::new(archive).expect("an archive");
    let mut text = |name: &str| {
        let file = archive.by_name(name).expect(name);
        std::io::read_to_string(file).expect("text")
    };
    assert_eq!(
        text("report.html"),
        fs::read_to_string(&out).expect("it is there")
    );
    assert!(text("run-2/config.toml").contains("self-distill"));
    assert!(
        text("run-1/epochs.csv")
            .starts_with("epoch,known,unknown,held,maybe_known,weakly_known,RD,")
    );
    let facts = text("run-1/facts.csv");
    let mut rows = csv::Reader::from_reader(facts.as_bytes());
    let subject = rows
        .headers()
        .expect("a header")
        .iter()
        .position(|h| h == "subject");
    let subject = subject.expect("a column");
    let rows: Vec<csv::StringRecord> = rows.records().map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), facts_of(&dirs[0]));
    assert!(rows.iter().any(|row| &row[subject] == HOSTILE));
}

/// Rows of a run's `facts.jsonl`.
fn facts_of(dir: &std::path::Path) -> usize {
    let text = fs::read_to_string(dir.join("facts.jsonl")).expect("it is there");
    text.lines().count()
}
