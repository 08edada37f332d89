//! The processes that share the work: this one alone, or those that MPI started together (`mpirun -n 4 unforget tune ...`, in a
//! build with the feature `mpi`).
//!
//! All of them run the same program on the same files and come to the same decisions. Each takes its [share] of what can be
//! shared: of a batch's rows, of the facts that are asked, of the weights that the optimiser moves; what comes of it is brought
//! together here. The first one alone writes files and speaks. All of them must come to the same calls of this module in the same
//! order, so that one that fails ends all ([`abort`]).
//!
//! This is a property of the process, as its number of threads is, and not handed from function to function.

use std::{
    env,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// Environment variables by which launchers tell a process how many there are: Open MPI's `mpirun`, PMI (MPICH, Intel MPI, Slurm), and
/// Slurm where it speaks `PMIx`, which sets a variable of its own.
const WORLD_SIZE_VARS: [(&str, Option<&str>); 3] = [
    ("OMPI_COMM_WORLD_SIZE", None),
    ("PMI_SIZE", None),
    ("SLURM_STEP_NUM_TASKS", Some("PMIX_RANK")),
];

/// How often [`single_arm_metrics`] is under way.
static SOLO_DEPTH: AtomicUsize = AtomicUsize::new(0);

/// How many processes share the work.
pub fn world_size() -> usize {
    if SOLO_DEPTH.load(Ordering::Relaxed) > 0 {
        return 1;
    }
    world::place().1
}

/// The number of this one among them, from 0.
pub fn rank() -> usize {
    if world_size() == 1 {
        0
    } else {
        world::place().0
    }
}

/// Whether it is this one that writes and speaks.
pub fn is_main() -> bool {
    rank() == 0
}

/// Which of `len` things are this process's.
pub fn shard_range(len: usize) -> Range<usize> {
    shard_range_of(rank(), len)
}

/// Which of `len` things are those of the process numbered `rank`: shares differ by one at most, and together they are all.
pub fn shard_range_of(rank: usize, len: usize) -> Range<usize> {
    len * rank / world_size()..len * (rank + 1) / world_size()
}

/// What all have found, one after the other.
pub fn all_gather<T: Serialize + DeserializeOwned>(own: Vec<T>) -> Vec<T> {
    if world_size() == 1 {
        return own;
    }
    let text = serde_json::to_vec(&own).expect("what is shared has a form in JSON");
    let parts = world::join(&text).into_iter();
    let read = |part: Vec<u8>| -> Vec<T> {
        serde_json::from_slice(&part).expect("every process writes the same form")
    };
    parts.flat_map(read).collect()
}

/// The sum over all processes of each value, in all of them.
pub fn all_reduce(values: &mut [f64]) {
    if world_size() > 1 {
        world::sum(values);
    }
}

/// The sum over all processes of each value, in the one numbered `owner`; the others' are left as they were.
pub fn reduce(owner: usize, values: &mut [f32]) {
    if world_size() > 1 {
        world::sum_at(owner, values);
    }
}

/// The values of the process numbered `owner`, in all of them.
pub fn broadcast(owner: usize, values: &mut [f32]) {
    if world_size() > 1 {
        world::tell(owner, values);
    }
}

/// Whether any process says so.
pub fn any(said: bool) -> bool {
    let mut count = [f64::from(u8::from(said))];
    all_reduce(&mut count);
    count[0] > 0.0
}

/// What the first process says.
pub fn broadcast_flag(said: bool) -> bool {
    any(said && is_main())
}

/// Waits until all have come here: what the first has written can be read.
pub fn barrier() {
    any(false);
}

/// Calls `f` as if there were this process alone, whose work is its own.
pub fn solo<T>(f: impl FnOnce() -> T) -> T {
    struct ProcessGroup;
    impl Drop for ProcessGroup {
        fn drop(&mut self) {
            SOLO_DEPTH.fetch_sub(1, Ordering::Relaxed);
        }
    }
    SOLO_DEPTH.fetch_add(1, Ordering::Relaxed);
    let _together = ProcessGroup;
    f()
}

/// Ends every process with this exit code.
pub fn abort(code: u8) -> ! {
    world::fail(i32::from(code))
}

/// For as long as it lives the processes know of each other.
#[must_use = "the processes part when it is dropped"]
pub struct Together {
    _session: world::Session,
}

/// Finds the other processes, where a launcher started several.
///
/// # Errors
/// [`Error::Input`] where it did and this build knows no MPI: each would do all of the work, in the same place.
pub fn init() -> Result<Together> {
    let mut counts = WORLD_SIZE_VARS
        .iter()
        .filter(|(_, beside)| beside.is_none_or(|name| env::var_os(name).is_some()));
    let count = counts.find_map(|(name, _)| env::var(name).ok()?.parse().ok());
    let started = count.unwrap_or(1);
    if started > 1 && !cfg!(feature = "mpi") {
        return Err(Error::input_hint(
            format!(
                "this is one of {started} processes that were started together, and this build knows no MPI"
            ),
            "build it with `cargo build --release --features mpi`, or start one process",
        ));
    }
    Ok(Together {
        _session: world::begin(started)?,
    })
}

#[cfg(not(feature = "mpi"))]
mod world {
    use crate::Result;

    pub struct Session;

    #[allow(clippy::unnecessary_wraps, reason = "with MPI it may fail")]
    pub fn begin(_: usize) -> Result<Session> {
        Ok(Session)
    }

    pub const fn place() -> (usize, usize) {
        (0, 1)
    }

    pub fn join(own: &[u8]) -> Vec<Vec<u8>> {
        vec![own.to_vec()]
    }

    pub fn sum(_: &mut [f64]) {}

    pub fn sum_at(_: usize, _: &mut [f32]) {}

    pub fn tell(_: usize, _: &mut [f32]) {}

    pub fn fail(code: i32) -> ! {
        std::process::exit(code)
    }
}

#[cfg(feature = "mpi")]
mod world {
    use std::sync::OnceLock;

    use mpi::{
        Count, Threading,
        collective::SystemOperation,
        datatype::PartitionMut,
        environment::Universe,
        topology::{Process, SimpleCommunicator},
        traits::{Communicator, CommunicatorCollectives, Root},
    };

    use crate::{Error, Result};

    /// Values that are on their way at once: messages are counted in 32 bits, and what is reduced is copied.
    const CHUNK: usize = 1 << 22;

    /// Number and count, once they are known.
    static PLACE: OnceLock<(usize, usize)> = OnceLock::new();

    pub struct Session {
        _universe: Option<Universe>,
    }

    pub fn begin(started: usize) -> Result<Session> {
        if started < 2 {
            return Ok(Session { _universe: None });
        }
        // A thread of its own sums gradients while this one computes; never do two call at once.
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| failed("MPI cannot be started"))?;
        if threading < Threading::Serialized {
            return Err(failed("this MPI lets one thread alone use it"));
        }
        let world = universe.world();
        let place = (world.rank() as usize, world.size() as usize);
        PLACE.set(place).expect("it is begun once");
        Ok(Session {
            _universe: Some(universe),
        })
    }

    fn failed(message: &str) -> Error {
        Error::Failed {
            message: message.into(),
            hint: None,
        }
    }

    pub fn place() -> (usize, usize) {
        PLACE.get().copied().unwrap_or((0, 1))
    }

    fn world() -> SimpleCommunicator {
        SimpleCommunicator::world()
    }

    fn with_process<T>(rank: usize, f: impl FnOnce(&Process<'_>, bool) -> T) -> T {
        let world = world();
        f(&world.process_at_rank(rank as i32), place().0 == rank)
    }

    pub fn join(own: &[u8]) -> Vec<Vec<u8>> {
        let world = world();
        let mut counts = vec![0 as Count; place().1];
        world.all_gather_into(&(own.len() as Count), &mut counts[..]);
        let places: Vec<Count> = counts
            .iter()
            .scan(0, |end, count| {
                *end += count;
                Some(*end - count)
            })
            .collect();
        let mut all = vec![0u8; counts.iter().sum::<Count>() as usize];
        world.all_gather_varcount_into(
            own,
            &mut PartitionMut::new(&mut all[..], &counts[..], &places[..]),
        );
        let mut rest = &all[..];
        let part = |count: &Count| {
            let (part, after) = rest.split_at(*count as usize);
            rest = after;
            part.to_vec()
        };
        counts.iter().map(part).collect()
    }

    pub fn sum(values: &mut [f64]) {
        let own = values.to_vec();
        world().all_reduce_into(&own[..], values, SystemOperation::sum());
    }

    pub fn sum_at(owner: usize, values: &mut [f32]) {
        with_process(owner, |process, is_own| {
            for chunk in values.chunks_mut(CHUNK) {
                if is_own {
                    let own = chunk.to_vec();
                    process.reduce_into_root(&own[..], chunk, SystemOperation::sum());
                } else {
                    process.reduce_into(&*chunk, SystemOperation::sum());
                }
            }
        });
    }

    pub fn tell(owner: usize, values: &mut [f32]) {
        with_process(owner, |process, _| {
            for chunk in values.chunks_mut(CHUNK) {
                process.broadcast_into(chunk);
            }
        });
    }

    pub fn fail(code: i32) -> ! {
        if PLACE.get().is_some() {
            world().abort(code);
        }
        std::process::exit(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_a_process_has_everything_and_what_it_says_is_what_all_say() {
        assert_eq!((rank(), world_size(), is_main()), (0, 1, true));
        assert_eq!((shard_range(7), shard_range_of(0, 7)), (0..7, 0..7));
        assert_eq!(all_gather(vec![1.5, 2.0]), [1.5, 2.0]);
        let (mut f64s, mut f32s) = ([1.0, 2.0], [3.0, 4.0]);
        all_reduce(&mut f64s);
        reduce(0, &mut f32s);
        broadcast(0, &mut f32s);
        assert_eq!((f64s, f32s), ([1.0, 2.0], [3.0, 4.0]));
        assert!(any(true) && !any(false) && broadcast_flag(true));
        assert_eq!(solo(world_size), 1);
    }
}
