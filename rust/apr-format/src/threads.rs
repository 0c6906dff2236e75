//! Work shared out to threads, also in the child of a fork.
//!
//! rayon's global pool is created once. A child of `fork` inherits the pool but none of its threads, so its
//! first parallel iterator waits forever. The workers of a torch `DataLoader` are such children. Here each
//! process starts a pool of its own when it first needs one.
//!
//! A handler that runs at each fork (`pthread_atfork`, or Python's `os.register_at_fork`) would not do.
//! Between `fork` and the end of the handler a child may only call what is safe in a signal handler, which
//! starting threads is not; most children never need threads; and forks by C code do not run Python's
//! handlers. Comparing the process id at each use catches every fork and costs one system call.

use std::{process, sync::OnceLock};

use rayon::{ScopeFifo, ThreadPool, ThreadPoolBuilder, prelude::*};

/// Apply `act` to each item, in parallel if there are several. The results keep the order of the items.
///
/// # Errors
/// One of the errors of `act`.
pub fn try_map<T: Send, R: Send, E: Send>(
    items: Vec<T>,
    act: impl Fn(T) -> Result<R, E> + Sync + Send,
) -> Result<Vec<R>, E> {
    if items.len() < 2 {
        // Starting a pool takes longer than most single items.
        return items.into_iter().map(act).collect();
    }
    run(|| items.into_par_iter().map(act).collect())
}

/// Run code that uses rayon's iterators on this process's pool.
pub fn run<R: Send>(act: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() {
        return act(); // this thread belongs to a pool already
    }
    match pool() {
        Some(threads) => threads.install(act),
        None => act(), // no thread could be started; rayon reports why
    }
}

/// Run `act` on this thread. In the scope that it gets, work can be started on this process's pool, in order; all of
/// it has ended when this returns.
pub fn scope<'scope, R>(act: impl FnOnce(&ScopeFifo<'scope>) -> R) -> R {
    match pool() {
        Some(threads) => threads.in_place_scope_fifo(act),
        None => rayon::in_place_scope_fifo(act), // no thread could be started; rayon reports why
    }
}

/// The pools of this process and of the processes that it was forked from, oldest first.
static FIRST: OnceLock<Pool> = OnceLock::new();

/// The pool of one process.
struct Pool {
    process: u32,
    threads: Option<ThreadPool>,
    /// The pool of a child. The child keeps its parent's: dropping a pool waits for its threads, which the
    /// child does not have. So each generation of forks leaks one pool, some kilobytes.
    next: OnceLock<Box<Pool>>,
}

impl Pool {
    fn new(process: u32) -> Self {
        Self { process, threads: ThreadPoolBuilder::new().build().ok(), next: OnceLock::new() }
    }
}

fn pool() -> Option<&'static ThreadPool> {
    let process = process::id();
    let mut pool = FIRST.get_or_init(|| Pool::new(process));
    while pool.process != process {
        pool = pool.next.get_or_init(|| Box::new(Pool::new(process)));
    }
    pool.threads.as_ref()
}
