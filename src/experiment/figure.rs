//! The figure of an experiment: per epoch, per arm, or over the number of facts.

use super::{
    file::{Arm, BASELINE_ARM, Experiment, FigureKind, ONLY_KNOWN},
    record::{AuditRecord, ExperimentResults, Record},
    table::{arms, forgotten, gap_to_only_known, learned},
};
use crate::{
    measure::wilson_interval,
    report::chart::{self, Bar, BarChart, Chart, LineChart, Point, Series, Unit, XAxis},
    run::{Drift, EpochRecord, Split},
    synth::NameKind,
};

/// The file name of a figure.
pub(super) const FIGURE_FILE: &str = "figure.svg";

/// Panels per row.
const COLUMNS: usize = 2;

/// Draws the figure as SVG; `None` if there is nothing to draw.
pub(super) fn draw(experiment: &Experiment, results: &ExperimentResults) -> Option<String> {
    let records = &results.runs;
    let lines = |panels: Vec<LineChart>| panels.into_iter().map(Chart::Lines).collect();
    let charts: Vec<Chart> = match experiment.figure {
        FigureKind::RetainedVsLearned => lines(retained_vs_learned(records)),
        FigureKind::Epochs => lines(accuracy_panels(records, true)),
        FigureKind::Bars => learned_and_forgotten_bars(records),
        FigureKind::NumFacts => lines(gap_over_num_facts(experiment, records)),
        FigureKind::Rd => lines(drift_panels(records).into_iter().take(1).collect()),
        FigureKind::Drift => {
            lines([drift_panels(records), accuracy_panels(records, false)].concat())
        }
        FigureKind::Labels => results.audits.iter().map(label_chart).collect(),
        FigureKind::Keys => Vec::new(),
    };
    (!charts.is_empty()).then(|| chart::svg(&experiment.title, &charts, COLUMNS))
}

/// Accuracy per epoch: one panel per split, one line per run; held-out and new facts only unless `all`.
fn accuracy_panels(records: &[Record], all: bool) -> Vec<LineChart> {
    let parts = [
        ("Held-out facts", Split::Held),
        ("New facts", Split::Unknown),
        ("Known facts in training", Split::Known),
        ("MaybeKnown facts", Split::MaybeKnown),
        ("WeaklyKnown facts", Split::WeaklyKnown),
    ];
    let parts = parts.into_iter().take(if all { 5 } else { 2 });
    let panel = |(title, split): (&str, Split)| {
        let value = |epoch: &EpochRecord| epoch.accuracy.get(split).copied();
        over_epochs(format!("{title}: accuracy"), Unit::Fraction, records, value)
    };
    parts.filter_map(panel).collect()
}

/// Drift per epoch: one panel per recorded measure, one line per run.
fn drift_panels(records: &[Record]) -> Vec<LineChart> {
    let names = Drift::default().named();
    let panel = |(i, (name, _)): (usize, (&str, _))| {
        let value = |epoch: &EpochRecord| epoch.drift.as_ref()?.named()[i].1;
        over_epochs(name.to_owned(), Unit::Number, records, value)
    };
    names.into_iter().enumerate().filter_map(panel).collect()
}

/// `value` per epoch, one line per run; `None` if no run has it.
fn over_epochs(
    title: String,
    unit: Unit,
    records: &[Record],
    value: impl Fn(&EpochRecord) -> Option<f64>,
) -> Option<LineChart> {
    let points = |record: &Record| {
        chart::points_by_epoch(&record.epochs, |epoch| Some((value(epoch)?, None)))
    };
    let series = arms(records).into_iter().enumerate();
    let series = series.flat_map(|(style, arm)| {
        let runs = records.iter().filter(|r| r.arm == arm);
        lines(runs, arm, style, points)
    });
    LineChart::over_epochs(title, unit, series)
}

fn point(at: f64, value: f64) -> Point {
    Point {
        at,
        value,
        interval: None,
    }
}

/// One line per run of an arm; only the first has a label.
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

/// Accuracy on new facts, forgotten facts and gap to Only Known: one bar per arm.
fn learned_and_forgotten_bars(records: &[Record]) -> Vec<Chart> {
    let bar = |arm: &str, value: f64, interval: Option<[f64; 2]>| Bar {
        label: arm.to_owned(),
        style: usize::from(arm == BASELINE_ARM),
        value,
        interval,
    };
    let arms = arms(records);
    let learned = arms
        .iter()
        .filter_map(|arm| Some(bar(arm, learned(arm, records)?, None)));
    let wrong = arms.iter().filter_map(|arm| {
        let share = forgotten(arm, records)?.share;
        Some(bar(arm, share.value, Some(share.interval)))
    });
    let gaps = arms.iter().filter_map(|arm| {
        let loss = gap_to_only_known(arm, records)?;
        Some(bar(arm, loss.value, Some(loss.interval)))
    });
    let charts = [
        (
            "New facts learned",
            Unit::Fraction,
            learned.collect::<Vec<_>>(),
        ),
        (
            "Known held-out facts forgotten, in percent",
            Unit::Points,
            wrong.collect(),
        ),
        (
            "Gap to Only Known on held-out facts",
            Unit::Points,
            gaps.collect(),
        ),
    ];
    let drawn = charts.into_iter().filter(|(_, _, bars)| !bars.is_empty());
    drawn
        .map(|(title, unit, bars)| {
            Chart::Bars(BarChart {
                title: title.to_owned(),
                unit,
                bars,
            })
        })
        .collect()
}

/// Gap to Only Known over the number of synthetic facts: one line per type of key.
fn gap_over_num_facts(experiment: &Experiment, records: &[Record]) -> Vec<LineChart> {
    let kinds = [
        (NameKind::Semantic, "names", 0),
        (NameKind::Uuid, "identifiers", 1),
    ];
    let series = kinds.map(|(keys, label, style)| {
        let of_kind = |arm: &&Arm| {
            arm.synthetic
                .is_some_and(|synthetic| synthetic.keys == keys)
        };
        let arms = experiment.arms.iter().filter(of_kind);
        let points = arms.filter_map(|arm| {
            let counts = &records.iter().find(|r| r.arm == arm.name)?.result.counts;
            let loss = gap_to_only_known(&arm.name, records)?;
            Some(Point {
                interval: Some(loss.interval),
                ..point((counts.learned + counts.not_learned) as f64, loss.value)
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
    vec![LineChart {
        title: "Gap to Only Known on held-out facts".into(),
        x_axis: XAxis::Count("new facts"),
        unit: Unit::Points,
        y_min: None,
        mark: None,
        series,
    }]
}

/// The fraction of each label in a relation.
fn label_chart(audit: &AuditRecord) -> Chart {
    let shares = &audit.label_fractions;
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
        interval: wilson_interval(value, shares.facts),
    });
    Chart::Bars(BarChart {
        title: format!("{}: {} facts", audit.relation, shares.facts),
        unit: Unit::Fraction,
        bars: bars.collect(),
    })
}

/// Accuracy on held-out facts over accuracy on new facts: one panel per arm with its baselines, one line per run.
fn retained_vs_learned(records: &[Record]) -> Vec<LineChart> {
    let arms = arms(records).into_iter();
    let arms = arms.filter(|arm| ![BASELINE_ARM, ONLY_KNOWN].contains(arm));
    let mut panels: Vec<LineChart> = arms.map(|arm| panel(arm, records)).collect();
    let lines = panels.iter().flat_map(|panel| &panel.series);
    let lowest = lines.flat_map(|s| &s.points).map(|point| point.value);
    let lowest = lowest.fold(0.9, f64::min);
    let from = (10.0 * lowest).floor() / 10.0;
    for panel in &mut panels {
        panel.y_min = Some(from);
    }
    panels
}

/// The panel of `arm` and its baselines, on the relations and seeds of its runs.
fn panel(arm: &str, records: &[Record]) -> LineChart {
    let own: Vec<&Record> = records.iter().filter(|r| r.arm == arm).collect();
    let names = [arm, BASELINE_ARM, ONLY_KNOWN].into_iter().enumerate();
    let series = names.flat_map(|(style, name)| {
        let is_comparable = |r: &&Record| {
            let same = |own: &&Record| own.relation == r.relation && own.seed == r.seed;
            r.arm == name && own.iter().any(same)
        };
        lines(
            records.iter().filter(is_comparable),
            name,
            style,
            learning_curve,
        )
    });
    let series = series.collect();
    let runs = own.len();
    LineChart {
        title: format!(
            "Accuracy on held-out facts: {arm} ({runs} run{})",
            if runs == 1 { "" } else { "s" }
        ),
        x_axis: XAxis::Fraction("learned"),
        unit: Unit::Fraction,
        y_min: None,
        mark: None,
        series,
    }
}

/// One point per epoch of a run, from the first on: before it, the model does not know the answer format. A run without new facts
/// is drawn as a horizontal line at its final accuracy.
fn learning_curve(record: &Record) -> Vec<Point> {
    let mut epochs = record.epochs.iter().filter(|epoch| epoch.epoch > 0);
    let end = epochs.next_back().and_then(|epoch| epoch.accuracy.held);
    chart::points_by_learning(&record.epochs, end)
}
