//! Validation of a resolved config.

use super::{
    check::{Checks, ConfigError},
    data::is_text,
    method::{Goal, MethodKind, TeacherMode},
    resolve::ModelSize,
    schema::{CPU_ONLY, Config, ModelDtype},
    train::OnNonFinite,
};

impl Config {
    /// All errors, in the order of the file's sections.
    pub(super) fn errors(&self) -> Vec<ConfigError> {
        // The checks are the same for models of every size.
        let resolved = self.resolve(ModelSize {
            num_hidden_layers: 1,
            parameters: 1,
        });
        let mut checks = Checks::default();
        resolved.config.check(&mut checks);
        checks.errors
    }

    /// Checks a resolved config.
    fn check(&self, checks: &mut Checks) {
        checks.require(!self.model.is_empty(), "model", "is empty");
        checks.require(!self.out.as_os_str().is_empty(), "out", "is empty");
        for (key, path) in [
            ("out", Some(&self.out)),
            ("baseline", self.baseline.as_ref()),
        ] {
            let holds = path.is_none_or(|path| is_text(path));
            checks.require(holds, key, "is not UTF-8 text");
        }
        checks.require(
            i64::try_from(self.seed).is_ok(),
            "seed",
            "is above the largest integer that TOML can hold",
        );
        checks.require(
            self.device.check().is_ok(),
            "device",
            format!("is `{}`: {CPU_ONLY}", self.device),
        );
        self.data.check(checks);
        self.method.check(checks);
        self.train.check(checks);
        self.measure.check(checks);
        self.check_combinations(checks);
    }

    /// Checks what depends on several sections.
    fn check_combinations(&self, checks: &mut Checks) {
        let Self { method, train, .. } = self;
        checks.require(
            method.goal == Goal::Facts
                || train
                    .early_stopping
                    .is_none_or(|stop| stop.accuracy.is_none()),
            "train.early_stopping.accuracy",
            "waits for new facts to be learned, which `method.goal = \"task\"` avoids: leave it out",
        );
        let patience = train.early_stopping.and_then(|stop| stop.patience);
        checks.require(
            patience.is_none() || self.data.has_validation(),
            "train.early_stopping.patience",
            "waits for the validation loss to improve, and there is none: set `data.validation` or `data.validation_share`",
        );
        checks.require(
            patience.is_none() || method.budget.is_none(),
            "train.early_stopping.patience",
            "keeps the epoch with the smallest validation loss, and `method.budget` the one that learned most within the budget: leave one of them out",
        );
        let beside = train.lora.as_ref().filter(|lora| !lora.is_merged(method));
        checks.require(
            method.teacher != TeacherMode::Base || beside.is_some(),
            "method.teacher",
            "`base` is the model without its adapters, and there are none beside its weights: set `train.lora` with another variant than `dora`, and no penalty on weights",
        );
        checks.require(
            method.teacher != TeacherMode::Base || method.snapshot_epochs == 0,
            "method.teacher",
            "`base` is the base model: set `method.snapshot_epochs = 0`, or `method.teacher = \"online\"`, which keeps the adapters of the snapshot",
        );
        checks.require(
            self.model_dtype == ModelDtype::F32 || beside.is_some(),
            "model_dtype",
            "holds weights that are not trained: train an adapter over them (`--lora-r 16`; not with `dora`, L2 or EWC)",
        );
        if let Some(lora) = &train.lora {
            checks.require(
                lora.dropout == 0.0 || beside.is_some(),
                "train.lora.dropout",
                "needs adapters beside the weights; those of `dora`, and those with a penalty on weights, are written into them: leave it out",
            );
            checks.require(
                method.interpolate.is_none(),
                "method.interpolate",
                "scales the change of whole weights, which is then no longer a product of adapters: leave `method.interpolate` or `train.lora` out",
            );
            checks.require(
                method.project.is_none(),
                "method.project",
                "projects updates of whole weights; the product of updated adapters does not stay in the space: leave `method.project` or `train.lora` out",
            );
        }
        let conflicts: Vec<&str> = [
            (
                "`train.gradient_accumulation_steps` must be 1",
                train.gradient_accumulation_steps != 1,
            ),
            ("`train.lora` must be absent", train.lora.is_some()),
            (
                "`train.on_nonfinite` must be `stop`",
                train.on_nonfinite != OnNonFinite::Stop,
            ),
            (
                "`method.kind` must be `sft` or `self-distill`",
                !matches!(method.kind, MethodKind::Sft | MethodKind::SelfDistill),
            ),
            (
                "`method.decoys` needs a second backward pass",
                method.trains_decoys(),
            ),
            (
                "`method.replay` needs a second backward pass",
                method.replay.is_some(),
            ),
            (
                "`method.ewc` needs the whole gradient",
                method.ewc.is_some(),
            ),
            (
                "`measure.grad_norms` needs the whole gradient",
                self.measure.grad_norms,
            ),
        ]
        .into_iter()
        .filter_map(|(reason, conflicts)| conflicts.then_some(reason))
        .collect();
        checks.require(
            !train.optimizer_in_backward || conflicts.is_empty(),
            "train.optimizer_in_backward",
            format!(
                "updates each layer before the next gradient is computed: {}",
                conflicts.join("; ")
            ),
        );
    }
}
