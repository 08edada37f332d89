//! The charts of the page.

use std::collections::BTreeSet;

use super::{
    chart::{
        self, Bar, BarChart, Chart, Group, LineChart, Point, ScatterChart, Series, Unit, XAxis,
    },
    run_labels::{RunLabel, run_labels},
};
use crate::{
    format::thousands,
    measure::{sample, wilson_interval},
    run::{Drift, EpochRecord, EqualLearning, FactOutcome, FactResult, RecordedRun, Split},
};

/// Maximum number of dots per group in a scatter chart; larger groups are sampled.
const MAX_DOTS: usize = 1_500;

/// Accuracy over epochs: one chart per split, one line per run.
pub fn accuracy(runs: &[RecordedRun]) -> Vec<Chart> {
    let panel = |split: Split| {
        let count = |run: &RecordedRun| run.facts.iter().filter(|f| f.split == split).count();
        let facts = runs.iter().map(count).max().unwrap_or_default();
        let title = format!("{} ({} facts)", split_label(split), thousands(facts));
        over_epochs(title, Unit::Fraction, runs, |run, epoch| {
            let value = *epoch.accuracy.get(split)?;
            Some((value, wilson_interval(value, count(run))))
        })
    };
    Split::ALL.into_iter().filter_map(panel).collect()
}

/// Known facts kept as new facts are learned: one line per run, from its first epoch to its last; the level of Only Known, where it was
/// run, is a flat line. None if no run has both.
pub(super) fn trade(runs: &[RecordedRun], compared: Option<&EqualLearning>) -> Option<Chart> {
    let lines = runs.iter().zip(run_labels(runs)).map(|(run, label)| {
        let end = run.result.accuracy.held.map(|held| held.after);
        let points = chart::points_by_learning(&run.epochs, end);
        Series {
            label: label.short,
            style: label.style,
            points,
        }
    });
    let series: Vec<Series> = lines.filter(|line| !line.points.is_empty()).collect();
    let has_curve = runs.iter().any(|run| run.result.learned.is_some());
    let lowest = series.iter().flat_map(|line| &line.points).map(|p| p.value);
    // The curves lie between the lowest value and 1.
    let y_min = (lowest.fold(1.0, f64::min) * 10.0 - 0.5)
        .floor()
        .clamp(0.0, 8.0)
        / 10.0;
    (has_curve && !series.is_empty()).then_some(Chart::Lines(LineChart {
        title: "Held-out known facts kept".into(),
        x_axis: XAxis::Fraction("learned"),
        unit: Unit::Fraction,
        y_min: Some(y_min),
        mark: compared.map(|compared| compared.learned),
        series,
    }))
}

/// Drift over epochs, if measured: one chart per measure.
pub(super) fn drift(runs: &[RecordedRun]) -> Vec<Chart> {
    let names = Drift::default().named();
    let panel = |(i, (name, _)): (usize, (&str, _))| {
        over_epochs(name.to_owned(), Unit::Number, runs, |_, epoch| {
            Some((epoch.drift.as_ref()?.named()[i].1?, None))
        })
    };
    names.into_iter().enumerate().filter_map(panel).collect()
}

fn over_epochs(
    title: String,
    unit: Unit,
    runs: &[RecordedRun],
    value: impl Fn(&RecordedRun, &EpochRecord) -> Option<(f64, Option<[f64; 2]>)>,
) -> Option<Chart> {
    let lines = runs.iter().zip(run_labels(runs)).map(|(run, identity)| {
        let points = chart::points_by_epoch(&run.epochs, |epoch| value(run, epoch));
        Series {
            label: identity.short,
            style: identity.style,
            points,
        }
    });
    LineChart::over_epochs(title, unit, lines).map(Chart::Lines)
}

/// Learning and forgetting of several runs as bars.
pub(super) fn bars(runs: &[RecordedRun]) -> Vec<Chart> {
    if runs.len() < 2 {
        return Vec::new();
    }
    let bars = |title: &str, unit: Unit, of: &dyn Fn(&RecordedRun) -> Option<(f64, _)>| {
        let bars = runs.iter().zip(run_labels(runs)).filter_map(|(run, i)| {
            let (value, interval) = of(run)?;
            Some(Bar {
                label: i.short,
                style: i.style,
                value,
                interval,
            })
        });
        BarChart {
            title: title.to_owned(),
            unit,
            bars: bars.collect(),
        }
    };
    let charts = [
        bars("New facts learned", Unit::Fraction, &|run| {
            let new = run.result.counts.learned + run.result.counts.not_learned;
            let learned = run.result.learned?;
            Some((learned, wilson_interval(learned, new)))
        }),
        bars("Held-out known facts forgotten", Unit::Points, &|run| {
            let forgotten = run.result.forgotten?;
            Some((forgotten.pp, forgotten.interval))
        }),
        bars("Gap to Only Known", Unit::Points, &|run| {
            let result = &run.result;
            Some((
                result.gap_to_only_known_pp?,
                result.gap_to_only_known_interval,
            ))
        }),
    ];
    let drawn = charts.into_iter().filter(|bars| !bars.bars.is_empty());
    drawn.map(Chart::Bars).collect()
}

/// Forgetting against the number of new facts, one line per method, if runs differ in that number.
pub(super) fn forgetting_by_count(runs: &[RecordedRun]) -> Vec<Chart> {
    let new = |run: &RecordedRun| run.result.counts.learned + run.result.counts.not_learned;
    let methods: BTreeSet<&str> = runs.iter().map(|run| &run.result.method[..]).collect();
    let lines = methods.into_iter().enumerate().map(|(style, method)| {
        let of_method = runs.iter().filter(|run| run.result.method == method);
        let mut points: Vec<Point> = of_method
            .filter(|run| new(run) > 0)
            .filter_map(|run| {
                let forgotten = run.result.forgotten?;
                Some(Point {
                    at: new(run) as f64,
                    value: forgotten.pp,
                    interval: forgotten.interval,
                })
            })
            .collect();
        points.sort_by(|a, b| a.at.total_cmp(&b.at));
        Series {
            label: method.to_owned(),
            style,
            points,
        }
    });
    let differs = |line: &Series| line.points.windows(2).any(|two| two[0].at < two[1].at);
    let series: Vec<Series> = lines.filter(differs).collect();
    if series.is_empty() {
        return Vec::new();
    }
    vec![Chart::Lines(LineChart {
        title: "Held-out facts forgotten".into(),
        x_axis: XAxis::Count("new facts"),
        unit: Unit::Points,
        y_min: None,
        mark: None,
        series,
    })]
}

/// The subjects in the plane of the first two principal components, by outcome: one chart per run that recorded them.
pub(super) fn maps(runs: &[RecordedRun]) -> Vec<Chart> {
    let several = runs.len() > 1;
    let map = |(run, run_label): (&RecordedRun, RunLabel)| {
        let group = |label: &str, style: usize, is_in: &dyn Fn(&FactResult) -> bool| {
            let rows = run.facts.iter().filter(|row| is_in(row));
            let dots: Vec<[f64; 2]> = rows
                .filter_map(|row| Some(row.pca?.map(f64::from)))
                .collect();
            let chosen = sample(dots.len(), MAX_DOTS, 0);
            let shown = if chosen.len() < dots.len() {
                format!("{label}, sampled")
            } else {
                label.to_owned()
            };
            Group {
                label: shown,
                style,
                dots: chosen.into_iter().map(|i| dots[i]).collect(),
            }
        };
        let held = |row: &FactResult| row.split != Split::Unknown && row.split != Split::Known;
        let groups = [
            group("new", 2, &|row| row.split == Split::Unknown),
            group("kept", 0, &|row| {
                held(row) && row.outcome == FactOutcome::Kept
            }),
            group("forgotten", 1, &|row| {
                held(row) && row.outcome == FactOutcome::Forgotten
            }),
        ];
        let groups: Vec<Group> = groups.into_iter().filter(|g| !g.dots.is_empty()).collect();
        (!groups.is_empty()).then(|| {
            Chart::Scatter(ScatterChart {
                title: if several {
                    format!("After {}", run_label.short)
                } else {
                    "Held-out and new subjects".into()
                },
                groups,
            })
        })
    };
    runs.iter().zip(run_labels(runs)).filter_map(map).collect()
}

/// The split's name on the page.
pub(super) fn split_label(split: Split) -> &'static str {
    match split {
        Split::Known => "Known, trained",
        Split::Unknown => "New, trained",
        Split::Held => "Known, held out",
        Split::MaybeKnown => "Maybe known, held out",
        Split::WeaklyKnown => "Weakly known, held out",
    }
}
