//! `unforget devices`.

use clap::Args;
use unforget::{
    Result,
    devices::{DeviceInfo, devices},
};

use super::{context::Context, output};

/// List the devices that --device can name, with memory and what each does
#[derive(Debug, Args)]
#[command(
    after_help = "A software device is a GPU's driver that computes on the CPU: it is right, and slower than the CPU itself.\n\n\
    Examples:\n  unforget devices\n  unforget devices --json"
)]
pub struct DevicesArgs {}

impl DevicesArgs {
    #[expect(clippy::unused_self, reason = "as the other commands")]
    pub fn run(self, context: &Context) -> Result<()> {
        let found = devices();
        if context.json {
            return output::json(&found);
        }
        let headers = ["device", "name", "kind", "memory", "driver", "runs"];
        let rows: Vec<Vec<String>> = found.iter().map(row).collect();
        output::line(&output::table(&headers, &rows, output::terminal_width()))?;
        if !cfg!(feature = "gpu") {
            context.progress.note(
                "this program was built without GPUs: `cargo install --path . --features gpu` builds one with them",
            );
        } else if found.len() == 1 {
            context.progress.note(
                "no GPU has a driver for Vulkan, Metal or DX12: the page Devices of the book says what to install",
            );
        }
        Ok(())
    }
}

fn row(device: &DeviceInfo) -> Vec<String> {
    let driver = [device.backend.as_deref(), device.driver.as_deref()];
    let driver: Vec<&str> = driver.into_iter().flatten().collect();
    let kind = match device.threads {
        Some(threads) => format!("{threads} threads"),
        None => device.kind.to_owned(),
    };
    vec![
        device.device.clone(),
        device.name.clone(),
        kind,
        device.memory(),
        driver.join(", "),
        device.runs.to_owned(),
    ]
}
