//! The processes that share the work of one run, as `torch.distributed` calls them: ranks `0..world_size`, of which rank 0 is the
//! main process. One process alone is the usual case; several are started by MPI (`mpirun -n 4 unforget tune ...`, in a build with
//! the feature `mpi`).
//!
//! All processes run the same program on the same files and take the same decisions. Each takes its shard of what can be split: the
//! rows of a batch, the facts of an evaluation, the weights that the optimizer updates. A [`Comm`] is the value through which they
//! exchange results. The command line creates it and passes it on; an engine, a run directory and a training job hold one. Every process
//! must make the same calls in the same order, so an error in one of them ends all ([`Comm::abort`]).

use std::{env, ops::Range};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// Environment variables that hold the number of processes, by launcher: Open MPI's `mpirun`, PMI (MPICH, Intel MPI, Slurm), and Slurm
/// with `PMIx`, which is recognised by a second variable.
const WORLD_SIZE_VARS: [(&str, Option<&str>); 3] = [
    ("OMPI_COMM_WORLD_SIZE", None),
    ("PMI_SIZE", None),
    ("SLURM_STEP_NUM_TASKS", Some("PMIX_RANK")),
];

/// A communicator: this process's rank, the number of processes, and the collective operations between them.
///
/// The default is one process alone, for which every operation is the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comm {
    rank: usize,
    world_size: usize,
}

impl Default for Comm {
    fn default() -> Self {
        Self::single()
    }
}

impl Comm {
    /// One process alone.
    pub const fn single() -> Self {
        Self {
            rank: 0,
            world_size: 1,
        }
    }

    /// One of several processes that exchange nothing.
    #[cfg(all(test, not(feature = "mpi")))]
    pub(crate) const fn for_test(rank: usize, world_size: usize) -> Self {
        Self { rank, world_size }
    }

    /// The rank of this process, from 0.
    pub const fn rank(self) -> usize {
        self.rank
    }

    /// How many processes share the work.
    pub const fn world_size(self) -> usize {
        self.world_size
    }

    /// Whether this is the main process, the only one that writes files and prints.
    pub const fn is_main(self) -> bool {
        self.rank == 0
    }

    /// Whether there are other processes.
    const fn is_shared(self) -> bool {
        self.world_size > 1
    }

    /// The shard of `0..len` of this process.
    pub const fn shard_range(self, len: usize) -> Range<usize> {
        self.shard_range_of(self.rank, len)
    }

    /// The shard of `0..len` of process `rank`. Shards are contiguous, cover everything and differ in length by at most one.
    pub const fn shard_range_of(self, rank: usize, len: usize) -> Range<usize> {
        len * rank / self.world_size..len * (rank + 1) / self.world_size
    }

    /// Concatenates the values of all processes, in the order of their ranks.
    pub fn all_gather<T: Serialize + DeserializeOwned>(self, own: Vec<T>) -> Vec<T> {
        if !self.is_shared() {
            return own;
        }
        let text = serde_json::to_vec(&own).expect("gathered values serialize to JSON");
        let parts = backend::all_gather(&text).into_iter();
        let read = |part: Vec<u8>| -> Vec<T> {
            serde_json::from_slice(&part).expect("every process gathers the same type")
        };
        parts.flat_map(read).collect()
    }

    /// Sums each value over all processes, in all of them.
    pub fn all_reduce(self, values: &mut [f64]) {
        if self.is_shared() {
            backend::all_reduce(values);
        }
    }

    /// Sums each value over all processes, in process `owner`; the values of the others are unchanged.
    pub fn reduce(self, owner: usize, values: &mut [f32]) {
        if self.is_shared() {
            backend::reduce(owner, values);
        }
    }

    /// Copies the values of process `owner` to all processes.
    pub fn broadcast(self, owner: usize, values: &mut [f32]) {
        if self.is_shared() {
            backend::broadcast(owner, values);
        }
    }

    /// Whether `flag` is set in any process.
    pub fn any(self, flag: bool) -> bool {
        let mut count = [f64::from(u8::from(flag))];
        self.all_reduce(&mut count);
        count[0] > 0.0
    }

    /// The flag of the main process.
    pub fn broadcast_flag(self, flag: bool) -> bool {
        self.any(flag && self.is_main())
    }

    /// Waits until all processes have come here, so that files written by the main process can be read.
    pub fn barrier(self) {
        self.any(false);
    }

    /// Ends every process with this exit code.
    pub fn abort(self, code: u8) -> ! {
        if self.is_shared() {
            backend::abort(i32::from(code));
        }
        std::process::exit(i32::from(code))
    }
}

/// Connects the processes for as long as it lives.
#[must_use = "the processes disconnect when it is dropped"]
pub struct ProcessGroup {
    comm: Comm,
    _session: backend::Session,
}

impl ProcessGroup {
    /// Connects to the other processes, if a launcher started several.
    ///
    /// # Errors
    /// [`Error::Input`] if there are several and this build has no MPI: each would do all of the work, in the same place.
    pub fn init() -> Result<Self> {
        let mut counts = WORLD_SIZE_VARS
            .iter()
            .filter(|(_, second)| second.is_none_or(|name| env::var_os(name).is_some()));
        let count = counts.find_map(|(name, _)| env::var(name).ok()?.parse().ok());
        let started = count.unwrap_or(1);
        if started > 1 && !cfg!(feature = "mpi") {
            return Err(Error::input_hint(
                format!("a launcher started {started} processes, and this build has no MPI"),
                "build with `cargo build --release --features mpi`, or start one process",
            ));
        }
        let (session, comm) = backend::init(started)?;
        Ok(Self {
            comm,
            _session: session,
        })
    }

    /// The communicator of these processes.
    pub const fn comm(&self) -> Comm {
        self.comm
    }
}

#[cfg(not(feature = "mpi"))]
mod backend {
    use super::Comm;
    use crate::Result;

    pub struct Session;

    #[allow(clippy::unnecessary_wraps, reason = "with MPI it may fail")]
    pub fn init(_: usize) -> Result<(Session, Comm)> {
        Ok((Session, Comm::single()))
    }

    pub fn all_gather(own: &[u8]) -> Vec<Vec<u8>> {
        vec![own.to_vec()]
    }

    pub fn all_reduce(_: &mut [f64]) {}

    pub fn reduce(_: usize, _: &mut [f32]) {}

    pub fn broadcast(_: usize, _: &mut [f32]) {}

    pub fn abort(code: i32) -> ! {
        std::process::exit(code)
    }
}

#[cfg(feature = "mpi")]
mod backend {
    use mpi::{
        Count, Threading,
        collective::SystemOperation,
        datatype::PartitionMut,
        environment::Universe,
        topology::SimpleCommunicator,
        traits::{Communicator, CommunicatorCollectives, Root},
    };

    use super::Comm;
    use crate::{Error, Result};

    /// Values per message: MPI counts in 32 bits, and a reduction copies its input.
    const CHUNK: usize = 1 << 22;

    pub struct Session {
        _universe: Option<Universe>,
    }

    pub fn init(started: usize) -> Result<(Session, Comm)> {
        if started < 2 {
            return Ok((Session { _universe: None }, Comm::single()));
        }
        // A second thread reduces gradients during the backward pass; two threads never call MPI at the same time.
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| failed("MPI cannot be initialised"))?;
        if threading < Threading::Serialized {
            return Err(failed("this MPI supports calls from one thread only"));
        }
        let world = universe.world();
        let comm = Comm {
            rank: world.rank() as usize,
            world_size: world.size() as usize,
        };
        let session = Session {
            _universe: Some(universe),
        };
        Ok((session, comm))
    }

    fn failed(message: &str) -> Error {
        Error::Failed {
            message: message.into(),
            hint: None,
        }
    }

    fn world() -> SimpleCommunicator {
        SimpleCommunicator::world()
    }

    pub fn all_gather(own: &[u8]) -> Vec<Vec<u8>> {
        let world = world();
        let mut counts = vec![0 as Count; world.size() as usize];
        world.all_gather_into(&(own.len() as Count), &mut counts[..]);
        let offsets: Vec<Count> = counts
            .iter()
            .scan(0, |end, count| {
                *end += count;
                Some(*end - count)
            })
            .collect();
        let mut all = vec![0u8; counts.iter().sum::<Count>() as usize];
        world.all_gather_varcount_into(
            own,
            &mut PartitionMut::new(&mut all[..], &counts[..], &offsets[..]),
        );
        let mut rest = &all[..];
        let part = |count: &Count| {
            let (part, after) = rest.split_at(*count as usize);
            rest = after;
            part.to_vec()
        };
        counts.iter().map(part).collect()
    }

    pub fn all_reduce(values: &mut [f64]) {
        let own = values.to_vec();
        world().all_reduce_into(&own[..], values, SystemOperation::sum());
    }

    pub fn reduce(owner: usize, values: &mut [f32]) {
        let world = world();
        let process = world.process_at_rank(owner as i32);
        let is_owner = world.rank() as usize == owner;
        for chunk in values.chunks_mut(CHUNK) {
            if is_owner {
                let own = chunk.to_vec();
                process.reduce_into_root(&own[..], chunk, SystemOperation::sum());
            } else {
                process.reduce_into(&*chunk, SystemOperation::sum());
            }
        }
    }

    pub fn broadcast(owner: usize, values: &mut [f32]) {
        let world = world();
        let process = world.process_at_rank(owner as i32);
        for chunk in values.chunks_mut(CHUNK) {
            process.broadcast_into(chunk);
        }
    }

    pub fn abort(code: i32) -> ! {
        world().abort(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_process_owns_everything_and_reduces_to_its_own_values() {
        let comm = Comm::single();
        assert_eq!(
            (comm.rank(), comm.world_size(), comm.is_main()),
            (0, 1, true)
        );
        assert_eq!(
            (comm.shard_range(7), comm.shard_range_of(0, 7)),
            (0..7, 0..7)
        );
        assert_eq!(comm.all_gather(vec![1.5, 2.0]), [1.5, 2.0]);
        let (mut f64s, mut f32s) = ([1.0, 2.0], [3.0, 4.0]);
        comm.all_reduce(&mut f64s);
        comm.reduce(0, &mut f32s);
        comm.broadcast(0, &mut f32s);
        assert_eq!((f64s, f32s), ([1.0, 2.0], [3.0, 4.0]));
        assert!(comm.any(true) && !comm.any(false) && comm.broadcast_flag(true));
    }

    #[test]
    fn shards_are_contiguous_cover_everything_and_differ_by_one_at_most() {
        let comm = |rank| Comm {
            rank,
            world_size: 3,
        };
        let shards: Vec<Range<usize>> = (0..3).map(|rank| comm(rank).shard_range(11)).collect();
        assert_eq!(shards, [0..3, 3..7, 7..11]);
        assert_eq!(comm(0).shard_range_of(2, 11), 7..11);
        assert!(comm(0).is_main() && !comm(2).is_main());
    }
}
