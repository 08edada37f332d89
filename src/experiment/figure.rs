//! The figure of an experiment: epoch by epoch, arm by arm, or over the number of facts.

use super::{
    Arm, AuditRecord, Experiment, ONLY_KNOWN, Record, Recorded,
    file::Figure,
    table::{UNIT, arms, below, learned},
};
use crate::{
    report::chart::{self, Across, Bar, Bars, Chart, Panel, Point, Series, Unit, wilson},
    run::{Drift, EpochRecord, Split},
    synth::Names,
};

/// Panels side by side.
const COLUMNS: usize = 2;

/// The figure in SVG; none where there is nothing to draw.
pub(super) fn figure(experiment: &Experiment, recorded: &Recorded) -> Option<String> {
    let records = &recorded.runs;
    let lines = |panels: Vec<Panel>| panels.into_iter().map(Chart::Lines).collect();
    let charts: Vec<Chart> = match experiment.figure {
        Figure::Learned => lines(over_learned(records)),
        Figure::Epochs => lines(shares_right(records, true)),
        Figure::Bars => learned_and_lost(records),
        Figure::Scale => lines(over_number(experiment, records)),
        Figure::Rd => lines(drift(records).into_iter().take(1).collect()),
        Figure::Drift => lines([drift(records), shares_right(records, false)].concat()),
        Figure::Labels => recorded.audits.iter().map(labels).collect(),
        Figure::Keys => Vec::new(),
    };
    (!charts.is_empty()).then(|| chart::svg(&experiment.title, &charts, COLUMNS))
}

/// A panel for each part of the facts, every run a line; of the held and the new ones alone where not `all` are wanted.
fn shares_right(records: &[Record], all: bool) -> Vec<Panel> {
    let parts = [
        ("Held facts", Split::Held),
        ("New facts", Split::Unknown),
        ("Trained known facts", Split::Known),
        ("MaybeKnown held facts", Split::MaybeKnown),
        ("WeaklyKnown held facts", Split::WeaklyKnown),
    ];
    let parts = parts.into_iter().take(if all { 5 } else { 2 });
    let panel = |(title, split): (&str, Split)| {
        let value = |epoch: &EpochRecord| epoch.accuracy.get(split).copied();
        over_epochs(format!("{title} right"), Unit::Share, records, value)
    };
    parts.filter_map(panel).collect()
}

/// A panel for each measure of drift that is recorded, every run a line.
fn drift(records: &[Record]) -> Vec<Panel> {
    let names = Drift::default().named();
    let panel = |(i, (name, _)): (usize, (&str, _))| {
        let value = |epoch: &EpochRecord| epoch.drift.as_ref()?.named()[i].1;
        over_epochs(name.to_owned(), Unit::Number, records, value)
    };
    names.into_iter().enumerate().filter_map(panel).collect()
}

/// What `value` is epoch by epoch, every run a line; none where it is nowhere.
fn over_epochs(
    title: String,
    unit: Unit,
    records: &[Record],
    value: impl Fn(&EpochRecord) -> Option<f64>,
) -> Option<Panel> {
    let points = |record: &Record| {
        chart::epoch_by_epoch(&record.epochs, |epoch| Some((value(epoch)?, None)))
    };
    let series = arms(records).into_iter().enumerate();
    let series = series.flat_map(|(style, arm)| {
        let runs = records.iter().filter(|r| r.arm == arm);
        lines(runs, arm, style, points)
    });
    Panel::over_epochs(title, unit, series)
}

fn at(at: f64, value: f64) -> Point {
    Point {
        at,
        value,
        interval: None,
    }
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

/// What each arm learned, and what it lost against Only Known: a bar an arm.
fn learned_and_lost(records: &[Record]) -> Vec<Chart> {
    let bar = |arm: &str, value: f64, interval: Option<[f64; 2]>| Bar {
        label: arm.to_owned(),
        style: usize::from(arm == UNIT),
        value,
        interval,
    };
    let arms = arms(records);
    let learned = arms
        .iter()
        .filter_map(|arm| Some(bar(arm, learned(arm, records)?, None)));
    let lost = arms.iter().filter_map(|arm| {
        let loss = below(arm, records)?;
        Some(bar(arm, loss.value, Some(loss.interval)))
    });
    let pictures = [
        (
            "New facts learned",
            Unit::Share,
            learned.collect::<Vec<_>>(),
        ),
        (
            "Held facts lost, against Only Known",
            Unit::Points,
            lost.collect(),
        ),
    ];
    let drawn = pictures.into_iter().filter(|(_, _, bars)| !bars.is_empty());
    drawn
        .map(|(title, unit, bars)| {
            Chart::Bars(Bars {
                title: title.to_owned(),
                unit,
                bars,
            })
        })
        .collect()
}

/// What is lost over the number of made-up facts, a line a kind of key.
fn over_number(experiment: &Experiment, records: &[Record]) -> Vec<Panel> {
    let kinds = [
        (Names::Semantic, "names", 0),
        (Names::Uuid, "identifiers", 1),
    ];
    let series = kinds.map(|(keys, label, style)| {
        let of_kind = |arm: &&Arm| arm.synthetic.is_some_and(|made_up| made_up.keys == keys);
        let arms = experiment.arms.iter().filter(of_kind);
        let points = arms.filter_map(|arm| {
            let counts = &records.iter().find(|r| r.arm == arm.name)?.result.counts;
            let loss = below(&arm.name, records)?;
            Some(Point {
                interval: Some(loss.interval),
                ..at((counts.learned + counts.not_learned) as f64, loss.value)
            })
        });
        Series {
            label: label.to_owned(),
            style,
            points: points.collect(),
        }
    });
    let series: Vec<Series> = series
        .into_iter()
        .filter(|line| !line.points.is_empty())
        .collect();
    if series.is_empty() {
        return Vec::new();
    }
    vec![Panel {
        title: "Held facts lost, against Only Known".into(),
        across: Across::Count("new facts"),
        unit: Unit::Points,
        from: None,
        series,
    }]
}

/// The share of each label in a relation.
fn labels(audit: &AuditRecord) -> Chart {
    let shares = &audit.shares;
    let labels = [
        ("HighlyKnown", shares.highly_known),
        ("MaybeKnown", shares.maybe_known),
        ("WeaklyKnown", shares.weakly_known),
        ("Unknown", shares.unknown),
    ];
    let bars = labels.into_iter().map(|(label, value)| Bar {
        label: label.to_owned(),
        style: 0,
        value,
        interval: wilson(value, shares.facts),
    });
    Chart::Bars(Bars {
        title: format!("{}: {} facts", audit.relation, shares.facts),
        unit: Unit::Share,
        bars: bars.collect(),
    })
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
