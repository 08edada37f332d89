//! What is still known against what was learned: where each arm's epochs lie, beside plain fine-tuning's and Only Known.

use super::{
    ONLY_KNOWN, Record,
    table::{UNIT, arms},
};
use crate::report::chart::{self, Across, Panel, Point, Series};

/// Panels side by side.
const COLUMNS: usize = 2;

/// A panel for each arm, every run a line through its epochs; none where there is no arm beside those that each is drawn against.
pub fn figure(title: &str, records: &[Record]) -> Option<String> {
    let arms = arms(records).into_iter();
    let arms = arms.filter(|arm| ![UNIT, ONLY_KNOWN].contains(arm));
    let mut panels: Vec<Panel> = arms.map(|arm| panel(arm, records)).collect();
    let lines = panels.iter().flat_map(|panel| &panel.series);
    let lowest = lines.flat_map(|s| &s.points).map(|point| point.share);
    let lowest = lowest.fold(0.9, f64::min);
    let from = (10.0 * lowest).floor() / 10.0;
    for panel in &mut panels {
        panel.from = from;
    }
    (!panels.is_empty()).then(|| chart::svg(title, &panels, COLUMNS))
}

/// `arm` and what it is drawn against, on the relations and seeds on which it was run.
fn panel(arm: &str, records: &[Record]) -> Panel {
    let own: Vec<&Record> = records.iter().filter(|r| r.arm == arm).collect();
    let mut series = Vec::new();
    for (style, name) in [arm, UNIT, ONLY_KNOWN].into_iter().enumerate() {
        let beside = |r: &&Record| {
            let same = |own: &&Record| own.relation == r.relation && own.seed == r.seed;
            r.arm == name && own.iter().any(same)
        };
        for (i, record) in records.iter().filter(beside).enumerate() {
            let label = if i == 0 {
                name.to_owned()
            } else {
                String::new()
            };
            let points = points(record);
            series.push(Series {
                label,
                style,
                points,
            });
        }
    }
    let runs = own.len();
    Panel {
        title: format!(
            "Held facts right: {arm} ({runs} run{})",
            if runs == 1 { "" } else { "s" }
        ),
        across: Across::Share("learned"),
        from: 0.0,
        series,
    }
}

/// The epochs of a run, from the first on: before it the format of the answers is not known. What learns nothing new ends in
/// one share, which holds wherever the others stand.
fn points(record: &Record) -> Vec<Point> {
    let at = |at: f64, share: f64| Point {
        at,
        share,
        interval: None,
    };
    let mut epochs = record.epochs.iter().filter(|epoch| epoch.epoch > 0);
    let learning = epochs
        .clone()
        .filter_map(|e| Some(at(e.accuracy.unknown?, e.accuracy.held?)));
    let learning: Vec<Point> = learning.collect();
    let end = epochs.next_back().and_then(|epoch| epoch.accuracy.held);
    match end {
        Some(share) if learning.is_empty() => vec![at(0.0, share), at(1.0, share)],
        _ => learning,
    }
}
