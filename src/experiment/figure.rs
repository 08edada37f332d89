//! The figure of an experiment: what is still known against what was learned, or what is right epoch by epoch.

use super::{
    ONLY_KNOWN, Record,
    file::Figure,
    table::{UNIT, arms},
};
use crate::{
    report::chart::{self, Across, Chart, Panel, Point, Series, Unit},
    run::PerSplit,
};

/// Panels side by side.
const COLUMNS: usize = 2;

/// The figure in SVG; none where there is nothing to draw.
pub fn figure(title: &str, kind: Figure, records: &[Record]) -> Option<String> {
    let panels = match kind {
        Figure::Learned => over_learned(records),
        Figure::Epochs => over_epochs(records),
    };
    let charts: Vec<Chart> = panels.into_iter().map(Chart::Lines).collect();
    (!charts.is_empty()).then(|| chart::svg(title, &charts, COLUMNS))
}

/// A panel for each part of the facts, every run a line.
fn over_epochs(records: &[Record]) -> Vec<Panel> {
    type Share = fn(&PerSplit<f64>) -> Option<f64>;
    let parts: [(&str, Share); 5] = [
        ("Held facts", |share| share.held),
        ("New facts", |share| share.unknown),
        ("Trained known facts", |share| share.known),
        ("MaybeKnown held facts", |share| share.maybe_known),
        ("WeaklyKnown held facts", |share| share.weakly_known),
    ];
    let panel = |(title, share): (&str, Share)| {
        let points = |record: &Record| -> Vec<Point> {
            let epochs = record.epochs.iter();
            let points = epochs.filter_map(|epoch| {
                Some(Point {
                    at: epoch.epoch as f64,
                    value: share(&epoch.accuracy)?,
                    interval: None,
                })
            });
            points.collect()
        };
        let series = arms(records).into_iter().enumerate();
        let series = series.flat_map(|(style, arm)| {
            let runs = records.iter().filter(|r| r.arm == arm);
            lines(runs, arm, style, points)
        });
        let series: Vec<Series> = series.filter(|line| !line.points.is_empty()).collect();
        (!series.is_empty()).then(|| Panel {
            title: format!("{title} right"),
            across: Across::Epochs,
            unit: Unit::Share,
            from: None,
            series,
        })
    };
    parts.into_iter().filter_map(panel).collect()
}

/// A line for each run of an arm, of which the first is named.
fn lines<'r>(
    runs: impl Iterator<Item = &'r Record>,
    arm: &str,
    style: usize,
    points: impl Fn(&Record) -> Vec<Point>,
) -> Vec<Series> {
    let line = |(i, record)| Series {
        label: if i == 0 {
            arm.to_owned()
        } else {
            String::new()
        },
        style,
        points: points(record),
    };
    runs.enumerate().map(line).collect()
}

/// A panel for each arm, every run a line through its epochs; none where there is no arm beside those that each is drawn against.
fn over_learned(records: &[Record]) -> Vec<Panel> {
    let arms = arms(records).into_iter();
    let arms = arms.filter(|arm| ![UNIT, ONLY_KNOWN].contains(arm));
    let mut panels: Vec<Panel> = arms.map(|arm| panel(arm, records)).collect();
    let lines = panels.iter().flat_map(|panel| &panel.series);
    let lowest = lines.flat_map(|s| &s.points).map(|point| point.value);
    let lowest = lowest.fold(0.9, f64::min);
    let from = (10.0 * lowest).floor() / 10.0;
    for panel in &mut panels {
        panel.from = Some(from);
    }
    panels
}

/// `arm` and what it is drawn against, on the relations and seeds on which it was run.
fn panel(arm: &str, records: &[Record]) -> Panel {
    let own: Vec<&Record> = records.iter().filter(|r| r.arm == arm).collect();
    let names = [arm, UNIT, ONLY_KNOWN].into_iter().enumerate();
    let series = names.flat_map(|(style, name)| {
        let beside = |r: &&Record| {
            let same = |own: &&Record| own.relation == r.relation && own.seed == r.seed;
            r.arm == name && own.iter().any(same)
        };
        lines(records.iter().filter(beside), name, style, points)
    });
    let series = series.collect();
    let runs = own.len();
    Panel {
        title: format!(
            "Held facts right: {arm} ({runs} run{})",
            if runs == 1 { "" } else { "s" }
        ),
        across: Across::Share("learned"),
        unit: Unit::Share,
        from: None,
        series,
    }
}

/// The epochs of a run, from the first on: before it the format of the answers is not known. What learns nothing new ends in
/// one share, which holds wherever the others stand.
fn points(record: &Record) -> Vec<Point> {
    let at = |at: f64, value: f64| Point {
        at,
        value,
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
