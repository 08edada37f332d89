//! The teacher's side of the loss on a GPU.

use super::loss::{SoftTargets, TeacherLogits, select_tokens};
use crate::{
    config::VocabSubset,
    gpu::{
        Gpu, GpuBuffer, GpuError,
        attention::Reused,
        head::{SoftTargets as OnDevice, TeacherLogits as LogitsOnDevice},
        lm_head::LmHead,
    },
};

/// Memory for what a teacher says of a batch. Its head stays on the device.
#[derive(Default)]
pub(super) struct TeacherMemory {
    head: Option<Head>,
    hidden: Reused,  // (P, D)
    tokens: Reused,  // (P, k)
    logits: Reused,  // (P, k)
    draws: Vec<f32>, // (V): zeros, for draws that depend on the size of the vocabulary alone
}

/// A teacher's head (V, D), and where it was uploaded from.
struct Head {
    from: (usize, usize), // address and length
    buffer: GpuBuffer,
}

impl TeacherMemory {
    /// Uploads `soft`, for a head of this shape (V, D).
    pub(super) fn upload(
        &mut self,
        gpu: &Gpu,
        soft: SoftTargets<'_>,
        [v, d]: [usize; 2],
    ) -> Result<OnDevice<'_>, GpuError> {
        let logits = match soft.logits {
            TeacherLogits::Hidden {
                head,
                hidden,
                subset,
                rng,
            } => {
                let from = (head.as_ptr().addr(), head.len());
                if self.head.as_ref().is_none_or(|known| known.from != from) {
                    self.head = None;
                    let buffer = gpu.upload(head)?;
                    self.head = Some(Head { from, buffer });
                }
                let positions = hidden.len() / d;
                let buffer = self.hidden.reserve(gpu, hidden.len())?;
                gpu.write(buffer, 0, hidden)?;
                let hidden = buffer.range(0..hidden.len());
                let Some(known) = &self.head else {
                    unreachable!("it was uploaded above");
                };
                let head = LmHead {
                    weight: known.buffer.range(0..v * d),
                    vocab_size: v,
                    hidden_size: d,
                };
                match subset {
                    VocabSubset::TopK(k) if k < v => LogitsOnDevice::MostLikely { head, hidden, k },
                    VocabSubset::Random(k) if k < v => {
                        self.draws.resize(v, 0.0);
                        let drawn = (0..positions)
                            .filter_map(|target| select_tokens(subset, rng, &self.draws, target));
                        let drawn: Vec<u32> = drawn.flatten().collect();
                        self.tokens.upload(gpu, &drawn)?;
                        let tokens = self.tokens.get()?.range(0..drawn.len());
                        LogitsOnDevice::Chosen {
                            head,
                            hidden,
                            tokens,
                            k,
                        }
                    }
                    VocabSubset::Full | VocabSubset::TopK(_) | VocabSubset::Random(_) => {
                        LogitsOnDevice::Full { head, hidden }
                    }
                }
            }
            TeacherLogits::TopK { tokens, logits, k } => {
                self.tokens.upload(gpu, tokens)?;
                let buffer = self.logits.reserve(gpu, logits.len())?;
                gpu.write(buffer, 0, logits)?;
                LogitsOnDevice::TopK {
                    tokens: self.tokens.get()?.range(0..tokens.len()),
                    logits: self.logits.get()?.range(0..logits.len()),
                    k,
                }
            }
        };
        Ok(OnDevice {
            logits,
            tau: soft.options.tau,
            exclude_target: soft.options.exclude_target,
        })
    }
}
