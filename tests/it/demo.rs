//! The demo, end to end, on the real small model (downloaded with pip if it is not in the cache).

use assert_cmd::cargo::cargo_bin_cmd;
use unforget::run::RunResult;

use crate::browser;

#[test]
fn the_quick_demo_teaches_a_real_model_and_shows_it_on_a_page() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let out = root.path().join("demo");
    let output = cargo_bin_cmd!("unforget")
        .args(["demo", "--quick", "--out"])
        .arg(&out)
        .output()
        .expect("it starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let result = |run: &str| -> RunResult {
        let text =
            std::fs::read_to_string(out.join(run).join("result.json")).expect("a finished run");
        serde_json::from_str(&text).expect("a result")
    };
    let (sft, auto) = (result("sft"), result("auto"));
    // Forty facts per split: only bounds that hold far beyond chance.
    assert!(
        sft.learned > Some(0.9),
        "plain fine-tuning learns: {:?}",
        sft.learned
    );
    assert!(
        auto.learned > Some(0.9),
        "`auto` learns as much: {:?}",
        auto.learned
    );
    let held = |run: &RunResult| run.accuracy.held.expect("held-out facts");
    assert!(
        held(&auto).after > held(&auto).start + 0.3,
        "the format is learned and facts are kept"
    );
    assert!(sft.gap_to_only_known_pp.is_some() && auto.gap_to_only_known_pp.is_some());

    let page = out.join("report.html");
    assert!(stdout.contains("report.html") && page.is_file(), "{stdout}");
    if let Some(page) = browser::open(&page) {
        let document = page.document();
        assert!(document.contains("<svg") && document.contains("Only Known"));
        let maps = page.eval("document.querySelectorAll('[aria-labelledby=map-title] svg').length");
        assert_eq!(maps, 3);
        page.assert_empty_console();
    }
}
