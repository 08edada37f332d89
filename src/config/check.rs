//! What the sections' checks have in common: every error of a config is collected before any is reported.

/// What is wrong with the value of one key.
#[derive(Debug)]
pub(super) struct ConfigError {
    /// Dotted, such as `train.learning_rate`.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// The errors found so far.
#[derive(Debug, Default)]
pub(super) struct Checks {
    /// In the order of the file's sections.
    pub errors: Vec<ConfigError>,
}

impl Checks {
    /// Adds an error unless `holds`.
    pub fn require(&mut self, holds: bool, key: &'static str, message: impl Into<String>) {
        if !holds {
            let message = message.into();
            self.errors.push(ConfigError { key, message });
        }
    }

    /// A count of 1 or more.
    pub fn at_least_one(&mut self, key: &'static str, count: usize) {
        self.require(count >= 1, key, "must be at least 1");
    }

    /// A finite number of 0 or more.
    pub fn not_negative(&mut self, key: &'static str, value: f64) {
        let holds = value >= 0.0 && value.is_finite();
        self.require(holds, key, format!("must be 0 or more, not {value}"));
    }

    /// A finite number above 0.
    pub fn positive(&mut self, key: &'static str, value: f64) {
        let holds = value > 0.0 && value.is_finite();
        self.require(holds, key, format!("must be above 0, not {value}"));
    }

    /// A fraction above 0 and at most 1.
    pub fn fraction(&mut self, key: &'static str, value: f64) {
        let holds = value > 0.0 && value <= 1.0;
        self.require(
            holds,
            key,
            format!("must be above 0 and at most 1, not {value}"),
        );
    }
}
