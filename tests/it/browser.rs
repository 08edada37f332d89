//! A page as a real browser sees it.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use headless_chrome::{
    Browser, LaunchOptions, Tab,
    protocol::cdp::{
        Emulation::{MediaFeature, SetDeviceMetricsOverride, SetEmulatedMedia},
        Page::CaptureScreenshotFormatOption,
        types::Event,
    },
};
use serde_json::Value;

use crate::tools::require;

/// An open page. What it complains of on its console is kept.
pub struct Page {
    tab: Arc<Tab>,
    console_messages: Arc<Mutex<Vec<String>>>,
    _browser: Browser,
}

/// Opens the page from disk in headless Chromium; `None` where there is no browser outside CI.
pub fn open(page: &Path) -> Option<Page> {
    let browser = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok());
    let browser = require(browser, "Chromium (Debian: apt-get install chromium)")?;
    let options = LaunchOptions {
        path: Some(browser.into()),
        sandbox: false,
        args: ["--disable-dev-shm-usage", "--disable-background-networking"]
            .map(AsRef::as_ref)
            .to_vec(),
        idle_browser_timeout: Duration::from_secs(120),
        ..LaunchOptions::default()
    };
    let browser = Browser::new(options).expect("the browser starts");
    let tab = browser.new_tab().expect("a tab");
    tab.set_default_timeout(Duration::from_secs(60));
    tab.enable_log().expect("a log");
    tab.enable_runtime().expect("a runtime");
    let console_messages = Arc::new(Mutex::new(Vec::new()));
    let messages = Arc::clone(&console_messages);
    let listen = move |event: &Event| {
        let message = match event {
            Event::LogEntryAdded(e) => e.params.entry.text.clone(),
            Event::RuntimeExceptionThrown(e) => format!("{:?}", e.params.exception_details),
            Event::RuntimeConsoleAPICalled(e) => format!("{:?}", e.params.args),
            _ => return,
        };
        messages.lock().expect("no listener panicked").push(message);
    };
    tab.add_event_listener(Arc::new(listen))
        .expect("a listener");
    let address = format!("file://{}", page.display());
    tab.navigate_to(&address)
        .and_then(|tab| tab.wait_until_navigated())
        .expect("the page opens");
    Some(Page {
        tab,
        console_messages,
        _browser: browser,
    })
}

impl Page {
    /// The value of an expression in the page, awaited where it is a promise.
    #[track_caller]
    pub fn eval(&self, expression: &str) -> Value {
        let text = self
            .tab
            .evaluate(
                &format!("(async () => JSON.stringify(await ({expression})))()"),
                true,
            )
            .unwrap_or_else(|e| panic!("{expression}: {e}"))
            .value;
        let text = text.as_ref().and_then(Value::as_str).unwrap_or("null");
        serde_json::from_str(text).expect("JSON")
    }

    /// The text of the first element that a selector finds.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        let found = self.eval(&format!("document.querySelector({selector:?}).textContent"));
        found.as_str().expect("text").to_owned()
    }

    /// The document as it stands.
    pub fn document(&self) -> String {
        self.tab.get_content().expect("a document")
    }

    /// Presses keys, one after the other.
    pub fn press(&self, keys: &[&str]) {
        for key in keys {
            self.tab.press_key(key).expect("a key");
        }
    }

    /// Lays the page out on a screen of this width, in the dark if wished.
    pub fn set_viewport(&self, width: u32, dark: bool) {
        let metrics = SetDeviceMetricsOverride {
            width,
            height: 900,
            device_scale_factor: 1.0,
            mobile: width < 600,
            scale: None,
            screen_width: None,
            screen_height: None,
            position_x: None,
            position_y: None,
            dont_set_visible_size: None,
            screen_orientation: None,
            viewport: None,
            display_feature: None,
            device_posture: None,
        };
        self.tab.call_method(metrics).expect("a screen");
        let scheme = MediaFeature {
            name: "prefers-color-scheme".into(),
            value: if dark { "dark" } else { "light" }.into(),
        };
        let media = SetEmulatedMedia {
            media: None,
            features: Some(vec![scheme]),
        };
        self.tab.call_method(media).expect("a medium");
    }

    /// Takes a picture of the whole page as it stands, in PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        let format = CaptureScreenshotFormatOption::Png;
        self.tab
            .capture_screenshot(format, None, None, true)
            .expect("a picture")
    }

    /// Fails if the page has complained on its console.
    #[track_caller]
    pub fn assert_empty_console(&self) {
        let console_messages = self.console_messages.lock().expect("no listener panicked");
        assert!(console_messages.is_empty(), "{console_messages:#?}");
    }
}
