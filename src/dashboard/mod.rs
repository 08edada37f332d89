//! A local web page about a run in progress.
//!
//! The server listens on the loopback address at a free port. It answers only a GET request of one path with a random token, which other
//! users and other pages in the same browser cannot guess. It reads the files of the run and writes nothing.

use std::{
    iter,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use minijinja::{AutoEscape, Environment, context};
use rand::Rng;
use serde::Serialize;
use tiny_http::{Header, Method, Request, Response, Server};

use crate::{
    Error, Result,
    format::{percent, thousands},
    progress::Progress,
    report::chart::{self, Chart, LineChart, Series, Unit, XAxis},
    run::{EpochRecord, Metrics, RunDir, Split},
};

/// The server; it stops when dropped.
pub struct Dashboard {
    server: Arc<Server>,
    /// Address of the page.
    pub url: String,
}

/// An evaluation as a table row.
#[derive(Serialize)]
struct EpochRow {
    epoch: usize,
    accuracies: Vec<String>,
}

impl Dashboard {
    /// Serves the page of the run in `dir`, which need not exist yet, with the time left that `progress` knows.
    ///
    /// # Errors
    /// [`Error::Failed`] if no port of the loopback address is available.
    pub fn serve(dir: PathBuf, progress: Progress) -> Result<Self> {
        let server = Server::http("127.0.0.1:0").map_err(|reason| Error::Failed {
            message: format!("cannot serve the dashboard on 127.0.0.1: {reason}"),
            hint: Some(
                "omit `--watch`; `unforget report` writes a page about a finished run".into(),
            ),
        })?;
        let server = Arc::new(server);
        let token = random_token();
        let url = format!("http://{}/{token}/", server.server_addr());
        let path = format!("/{token}/");
        let server_in_thread = server.clone();
        thread::spawn(move || {
            for request in server_in_thread.incoming_requests() {
                // The run continues when a browser disconnects.
                let _ = respond(request, &path, &dir, &progress);
            }
        });
        Ok(Self { server, url })
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.server.unblock();
    }
}

/// 128 random bits.
fn random_token() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

fn respond(request: Request, path: &str, dir: &Path, progress: &Progress) -> std::io::Result<()> {
    if *request.method() != Method::Get {
        return request.respond(Response::from_string("only GET\n").with_status_code(405));
    }
    if request.url() != path {
        return request.respond(Response::from_string("not found\n").with_status_code(404));
    }
    let nonce = random_token();
    let header = |name: &str, value: &str| {
        Header::from_bytes(name, value).expect("names and values are plain ASCII")
    };
    let page = Response::from_string(page(dir, &nonce, progress))
        .with_header(header("Content-Type", "text/html; charset=utf-8"))
        .with_header(header("Cache-Control", "no-store"))
        .with_header(header("Referrer-Policy", "no-referrer"))
        .with_header(header("X-Content-Type-Options", "nosniff"))
        .with_header(header(
            "Content-Security-Policy",
            &format!("default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
        ));
    request.respond(page)
}

/// The page, from the current files of the run, and the phase and the time left that `progress` knows.
fn page(dir: &Path, nonce: &str, progress: &Progress) -> String {
    let run = RunDir::open(dir).ok();
    let metrics = run
        .as_ref()
        .and_then(|run| run.metrics().ok())
        .unwrap_or_default();
    let result = run.as_ref().and_then(|run| run.result().ok().flatten());
    let config = run.as_ref().and_then(|run| run.config().ok());
    let num_epochs = config.map(|config| config.train.num_epochs);
    let epochs = EpochRecord::from_metrics(&metrics);
    let splits: Vec<Split> = Split::ALL
        .into_iter()
        .filter(|split| epochs.iter().any(|e| e.accuracy.get(*split).is_some()))
        .collect();
    let rows = epochs.iter().rev().map(|e| EpochRow {
        epoch: e.epoch,
        accuracies: splits
            .iter()
            .map(|split| {
                e.accuracy
                    .get(*split)
                    .copied()
                    .map_or_else(String::new, percent)
            })
            .collect(),
    });
    let across = num_epochs.map_or(XAxis::Epochs, XAxis::EpochsOf);
    let charts = [accuracy_chart(&epochs, &splits), loss_chart(&metrics)];
    let charts = charts.map(|chart| {
        chart.map(|chart| {
            Chart::Lines(LineChart {
                x_axis: across,
                ..chart
            })
        })
    });
    let charts = charts.into_iter().flatten().enumerate();
    let charts: Vec<String> = charts
        .map(|(i, chart)| chart::inline(&chart, &format!("c{i}")))
        .collect();

    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment
        .render_str(
            include_str!("page.html.j2"),
            context! {
                name => dir.display().to_string(),
                status => result.as_ref().map_or_else(|| status(&metrics, num_epochs, progress), ToString::to_string),
                detail => if result.is_some() { String::new() } else { last_step(&metrics) },
                done => result.is_some(),
                epochs => num_epochs, epochs_done => epochs.last().map_or(0, |last| last.epoch),
                nonce, chart_css => chart::CSS, charts,
                splits => splits.iter().map(|split| split.name().replace('_', " ")).collect::<Vec<_>>(),
                rows => rows.collect::<Vec<_>>(),
            },
        )
        .expect("the page's own template")
}

/// How far a run is: `epoch 3 of 20: evaluation; whole job: 4 min left`.
fn status(metrics: &[Metrics], num_epochs: Option<usize>, progress: &Progress) -> String {
    let epoch = metrics.iter().rev().find_map(|row| match row {
        Metrics::Step { epoch, .. } => Some(*epoch),
        _ => None,
    });
    let mut status = match (epoch, num_epochs) {
        (None, _) => "before training".to_owned(),
        (Some(epoch), None) => format!("epoch {epoch}"),
        (Some(epoch), Some(of)) => format!("epoch {epoch} of {of}"),
    };
    // The bar of an epoch names the epoch.
    if let Some(phase) = progress
        .phase()
        .filter(|phase| !phase.starts_with("epoch "))
    {
        status += &format!(": {phase}");
    }
    if let Some(left) = progress.time_left() {
        status += &format!("; whole job: {left}");
    }
    status
}

/// The newest step: its losses, learning rate and speed; empty before the first.
fn last_step(metrics: &[Metrics]) -> String {
    let last = metrics.iter().rev().find_map(|row| match row {
        Metrics::Step {
            step,
            loss,
            ce,
            distill,
            grad_norm,
            learning_rate,
            tokens_per_second,
            ..
        } => Some(format!(
            "step {}: loss {loss:.4} (cross-entropy {ce:.4}, distillation {distill:.4}), gradient norm {grad_norm:.2}, learning rate {learning_rate:.1e}, {} tokens/s",
            thousands(*step),
            thousands(tokens_per_second.round() as usize)
        )),
        _ => None,
    });
    last.unwrap_or_default()
}

/// Accuracy on every split over the epochs.
fn accuracy_chart(epochs: &[EpochRecord], splits: &[Split]) -> Option<LineChart> {
    let lines = splits.iter().enumerate().map(|(style, split)| Series {
        label: split.name().replace('_', " "),
        style,
        points: chart::points_by_epoch(epochs, |epoch| Some((*epoch.accuracy.get(*split)?, None))),
    });
    LineChart::over_epochs("Accuracy".into(), Unit::Fraction, lines)
}

/// The mean loss of each epoch's steps, from 0 on so that the axis stays as the loss falls.
fn loss_chart(metrics: &[Metrics]) -> Option<LineChart> {
    let mut sums: Vec<(usize, f64, usize)> = Vec::new();
    for row in metrics {
        let Metrics::Step { epoch, loss, .. } = row else {
            continue;
        };
        match sums.last_mut() {
            Some((last, sum, steps)) if last == epoch => {
                *sum += loss;
                *steps += 1;
            }
            _ => sums.push((*epoch, *loss, 1)),
        }
    }
    let points = sums.into_iter().map(|(epoch, sum, steps)| chart::Point {
        at: epoch as f64,
        value: sum / steps as f64,
        interval: None,
    });
    let line = Series {
        label: "loss".into(),
        style: 0,
        points: points.collect(),
    };
    let chart = LineChart::over_epochs("Loss (nats)".into(), Unit::Number, iter::once(line))?;
    Some(LineChart {
        y_min: Some(0.0),
        ..chart
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_page_needs_the_token() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let dir = place.path().join("<b>run");
        fs::create_dir(&dir).expect("a directory");
        fs::write(dir.join("config.toml"), "").expect("a file");
        let step = r#"{"type":"step","epoch":1,"step":1,"loss":2.5,"ce":2.5,"distill":0.0,"grad_norm":1.0,"learning_rate":1e-4,"tokens":9,"seconds":0.1,"tokens_per_second":90.0}"#;
        let eval = |epoch: usize| {
            format!(
                r#"{{"type":"eval","epoch":{epoch},"step":{epoch},"accuracy":{{"held":0.5}},"seconds":0.1}}"#
            )
        };
        fs::write(
            dir.join("metrics.jsonl"),
            [&eval(0), step, &eval(1), ""].join("\n"),
        )
        .expect("a file");

        let dashboard = Dashboard::serve(dir, Progress::quiet()).expect("a port");
        let agent = ureq::Agent::new_with_config(
            ureq::Agent::config_builder()
                .http_status_as_error(false)
                .proxy(None)
                .build(),
        );
        let mut page = agent.get(&dashboard.url).call().expect("an answer");
        assert_eq!(page.status(), 200);
        let policy = page.headers()["content-security-policy"]
            .to_str()
            .expect("text")
            .to_owned();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        let text = page.body_mut().read_to_string().expect("text");
        assert!(
            text.contains("epoch 1")
                && text.contains("step 1: loss 2.5000")
                && text.contains("<td>50.0%</td>"),
            "{text}"
        );
        assert!(
            text.contains("&lt;b&gt;run") && !text.contains("<b>run"),
            "{text}"
        );
        assert!(
            text.contains("http-equiv=\"refresh\"") && text.contains("<svg"),
            "{text}"
        );

        let root = dashboard
            .url
            .rsplitn(3, '/')
            .last()
            .expect("an address")
            .to_owned();
        for wrong in [
            format!("{root}/"),
            format!("{root}/{}/", random_token()),
            format!("{}x", dashboard.url),
        ] {
            assert_eq!(
                agent.get(&wrong).call().expect("an answer").status(),
                404,
                "{wrong}"
            );
        }
        assert_eq!(
            agent
                .delete(&dashboard.url)
                .call()
                .expect("an answer")
                .status(),
            405
        );
    }
}
