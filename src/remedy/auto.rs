//! `kind = "auto"`: what our own experiments found best, in the place of every setting that was left at its default.
//!
//! New facts are learned by plain cross-entropy in the feed-forward layers of the model's lower third, beside decoys, and the
//! moving average of the weights is what is kept. `docs/LOG.md` has what that was chosen by.

use crate::{
    config::{Config, DecoysConfig, Goal, MethodKind, TrainConfig},
    model::ModelConfig,
};

/// Four times the default for all tensors: so few of them learn more slowly.
const LEARNING_RATE: f64 = 2e-4;

/// The share of the average that a step keeps: it is over some twenty steps.
const EMA_DECAY: f64 = 0.95;

const DECOYS: DecoysConfig = DecoysConfig {
    ratio: 0.3,
    pool_ratio: Some(1.0),
    strength: 4.0,
};

/// `config` as it is trained on a model of this shape: what `auto` stands for written out, whatever else as it was. Settings
/// of one's own stay, and so do adapters, which are trained in the place of tensors.
#[must_use]
pub fn expand(config: &Config, model: &ModelConfig) -> Config {
    let mut config = config.clone();
    let (method, train, default) = (
        &mut config.method,
        &mut config.train,
        TrainConfig::default(),
    );
    if method.kind != MethodKind::Auto || method.goal != Goal::Facts {
        return config;
    }
    if train.trainable == default.trainable && train.lora.is_none() {
        let third = (model.num_hidden_layers / 3).max(1);
        train.trainable = vec![format!("ffn@0-{}", third - 1)];
    }
    if train.learning_rate.to_bits() == default.learning_rate.to_bits() {
        train.learning_rate = LEARNING_RATE;
    }
    train.ema_decay.get_or_insert(EMA_DECAY);
    method.decoys.get_or_insert(DECOYS);
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{LoraConfig, MethodConfig},
        model::Model,
    };

    fn auto() -> Config {
        Config {
            method: MethodConfig {
                kind: MethodKind::Auto,
                ..MethodConfig::default()
            },
            out: "run".into(),
            ..Config::default()
        }
    }

    fn on_golden(config: &Config) -> Config {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let model = Model::load(path).expect("the golden model");
        expand(
            config,
            &ModelConfig {
                num_hidden_layers: 30,
                ..model.config
            },
        )
    }

    #[test]
    fn auto_expands_unset_keys_once() {
        let config = on_golden(&auto());
        assert_eq!(config.train.trainable, ["ffn@0-9"]);
        assert_eq!(config.method.decoys, Some(DECOYS));
        assert_eq!(
            (config.train.learning_rate, config.train.ema_decay),
            (LEARNING_RATE, Some(EMA_DECAY))
        );
        assert_eq!(on_golden(&config), config);
        config.validate().expect("a config like any other");
    }

    #[test]
    fn user_settings_and_other_methods_stay() {
        let mut own = auto();
        own.train.trainable = vec!["down".into()];
        own.train.learning_rate = 1e-5;
        own.train.ema_decay = Some(0.5);
        own.method.decoys = Some(DecoysConfig::default());
        assert_eq!(on_golden(&own), own);

        let mut adapters = auto();
        adapters.train.lora = Some(LoraConfig::default());
        assert_eq!(on_golden(&adapters).train.trainable, ["all"]);

        for change in [
            |m: &mut MethodConfig| m.kind = MethodKind::Sft,
            |m: &mut MethodConfig| m.goal = Goal::Task,
        ] {
            let mut other = auto();
            change(&mut other.method);
            assert_eq!(on_golden(&other), other);
        }
    }
}
