//! The teacher's side of the loss on a GPU.

use std::hash::{DefaultHasher, Hasher};

use super::loss::{SoftTargets, TeacherLogits, select_tokens};
use crate::{
    config::VocabSubset,
    gpu::{
        Binding, Gpu, GpuBuffer, GpuError,
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
    from: HeadId,
    buffer: GpuBuffer,
}

/// What tells heads apart: address, length, and a checksum of some of the weights.
type HeadId = (usize, usize, u64);

fn head_id(head: &[f32]) -> HeadId {
    const SAMPLES: usize = 4096;

    let step = (head.len() / SAMPLES).max(1);
    let mut sum = DefaultHasher::new();
    head.iter()
        .step_by(step)
        .for_each(|weight| sum.write_u32(weight.to_bits()));
    (head.as_ptr().addr(), head.len(), sum.finish())
}

/// The head on the device.
fn uploaded<'m>(
    memory: &'m mut Option<Head>,
    gpu: &Gpu,
    head: &[f32],
) -> Result<Binding<'m>, GpuError> {
    let from = head_id(head);
    if memory.as_ref().is_none_or(|known| known.from != from) {
        *memory = None;
        let buffer = gpu.upload(head)?;
        *memory = Some(Head { from, buffer });
    }
    let known = memory.as_ref().expect("it was uploaded above");
    Ok(known.buffer.range(0..head.len()))
}

impl TeacherMemory {
    /// A teacher's head (V, D) on the device. It is uploaded once.
    pub(super) fn head(&mut self, gpu: &Gpu, head: &[f32]) -> Result<Binding<'_>, GpuError> {
        uploaded(&mut self.head, gpu, head)
    }

    /// Uploads `soft`; `own_head` is that of the student (V, D).
    pub(super) fn upload<'m>(
        &'m mut self,
        gpu: &Gpu,
        soft: SoftTargets<'_>,
        own_head: LmHead<'m>,
    ) -> Result<OnDevice<'m>, GpuError> {
        let (v, d) = (own_head.vocab_size, own_head.hidden_size);
        let logits = match soft.logits {
            TeacherLogits::Hidden {
                head,
                hidden,
                subset,
                rng,
            } => {
                let positions = hidden.len() / d;
                let buffer = self.hidden.reserve(gpu, hidden.len())?;
                gpu.write(buffer, 0, hidden)?;
                let hidden = buffer.range(0..hidden.len());
                let head = match head {
                    Some(head) => LmHead {
                        weight: uploaded(&mut self.head, gpu, head)?,
                        ..own_head
                    },
                    None => own_head,
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
