//! A page in a real browser: headless Chromium, controlled by the `DevTools` protocol over a pipe.

use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::tools::require;

/// Longest wait for a message of the browser.
const TIMEOUT: Duration = Duration::from_secs(60);

/// An open page, and the messages on its console.
pub struct Page(RefCell<Connection>);

struct Connection {
    browser: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    last_id: u64,
    /// The tab; empty before it is open.
    session: String,
    loaded: bool,
    console_messages: Vec<Value>,
    _profile: tempfile::TempDir,
}

/// Opens the page from disk in headless Chromium; `None` where there is no browser outside CI.
pub fn open(page: &Path) -> Option<Page> {
    let browser = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok());
    let browser = require(browser, "Chromium (Debian: apt-get install chromium)")?;
    let mut connection = Connection::new(browser);
    let tab = connection.call("Target.createTarget", json!({"url": "about:blank"}));
    let attach = json!({"targetId": tab["targetId"], "flatten": true});
    let attached = connection.call("Target.attachToTarget", attach);
    connection.session = attached["sessionId"].as_str().expect("an id").into();
    for domain in ["Log", "Runtime", "Page"] {
        connection.call(&format!("{domain}.enable"), json!({}));
    }
    let url = format!("file://{}", page.display());
    connection.call("Page.navigate", json!({ "url": url }));
    while !connection.loaded {
        connection.receive();
    }
    Some(Page(RefCell::new(connection)))
}

impl Connection {
    fn new(browser: &str) -> Self {
        let profile = tempfile::tempdir().expect("a temporary directory");
        // Chromium reads commands from descriptor 3 and writes messages to descriptor 4.
        let mut child = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >&2"#, browser])
            .args(["--headless=new", "--remote-debugging-pipe", "--no-sandbox"])
            .args(["--disable-dev-shm-usage", "--disable-background-networking"])
            .args(["--disable-gpu", "--hide-scrollbars", "--no-first-run"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser starts");
        let commands = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, messages) = mpsc::channel();
        thread::spawn(move || {
            for message in output.split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("messages are JSON");
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        Self {
            browser: child,
            commands,
            messages,
            last_id: 0,
            session: String::new(),
            loaded: false,
            console_messages: Vec::new(),
            _profile: profile,
        }
    }

    /// Calls a method of the protocol and returns its result.
    #[track_caller]
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut command = json!({"id": self.last_id, "method": method});
        command["params"] = params;
        if !self.session.is_empty() {
            command["sessionId"] = self.session.clone().into();
        }
        let sent = write!(self.commands, "{command}\0").and_then(|()| self.commands.flush());
        sent.expect("the browser is running");
        loop {
            let mut message = self.receive();
            if message["id"] == self.last_id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].take();
            }
        }
    }

    /// Receives one message and records what it says about the page.
    fn receive(&mut self) -> Value {
        let message = self.messages.recv_timeout(TIMEOUT);
        let message = message.expect("the browser answers");
        match message["method"].as_str() {
            Some("Page.loadEventFired") => self.loaded = true,
            Some("Log.entryAdded" | "Runtime.exceptionThrown" | "Runtime.consoleAPICalled") => {
                self.console_messages.push(message["params"].clone());
            }
            _ => {}
        }
        message
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.browser.kill();
        let _ = self.browser.wait();
    }
}

impl Page {
    #[track_caller]
    fn call(&self, method: &str, params: Value) -> Value {
        self.0.borrow_mut().call(method, params)
    }

    /// The value of an expression in the page, awaited if it is a promise.
    #[track_caller]
    pub fn eval(&self, expression: &str) -> Value {
        let expression = format!("(async () => ({expression}))()");
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut result = self.call("Runtime.evaluate", params);
        let exception = result.get("exceptionDetails");
        assert!(exception.is_none(), "{expression}: {exception:?}");
        result["result"]["value"].take()
    }

    /// The text of the first element that matches a selector.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        let text = self.eval(&format!("document.querySelector({selector:?}).textContent"));
        text.as_str().expect("text").to_owned()
    }

    /// The HTML of the document in its current state.
    pub fn document(&self) -> String {
        let html = self.eval("document.documentElement.outerHTML");
        html.as_str().expect("HTML").to_owned()
    }

    /// Presses keys, one after the other: `Tab` or single characters.
    pub fn press(&self, keys: &[&str]) {
        for key in keys {
            let mut params = json!({"type": "keyDown", "key": key});
            match *key {
                "Tab" => params["windowsVirtualKeyCode"] = 9.into(),
                character => params["text"] = character.into(),
            }
            self.call("Input.dispatchKeyEvent", params);
            self.call(
                "Input.dispatchKeyEvent",
                json!({"type": "keyUp", "key": key}),
            );
        }
    }

    /// Sets the width of the screen and the colour scheme.
    pub fn set_viewport(&self, width: u32, dark: bool) {
        let metrics =
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// A screenshot of the page, in PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let data = shot["data"].as_str().expect("base64");
        BASE64_STANDARD.decode(data).expect("base64")
    }

    /// Fails if there are messages on the console.
    #[track_caller]
    pub fn assert_empty_console(&self) {
        // Messages that were sent before this call's result have been received.
        self.eval("null");
        let messages = &self.0.borrow().console_messages;
        assert!(messages.is_empty(), "{messages:#?}");
    }
}
