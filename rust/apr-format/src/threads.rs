//! Work shared out to threads, in the child of a fork too.
//!
//! rayon's own pool is one for ever: the child of a fork has it without its threads and would wait for them
//! without end. A `DataLoader`'s workers are such children. So each process that needs threads makes its own.

use std::{process, sync::OnceLock};

use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};

/// Do something for each item, on several threads where there are several items; the results keep the order.
///
/// # Errors
/// One of those that `act` gave.
pub fn try_map<T: Send, R: Send, E: Send>(
    items: Vec<T>,
    act: impl Fn(T) -> Result<R, E> + Sync + Send,
) -> Result<Vec<R>, E> {
    if items.len() < 2 {
        return items.into_iter().map(act).collect();
    }
    run(|| items.into_par_iter().map(act).collect())
}

/// Run what uses rayon's iterators on threads that are there.
pub fn run<R: Send>(act: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() {
        return act(); // on such a thread already
    }
    match pool() {
        Some(threads) => threads.install(act),
        None => act(), // rayon will say why no thread can be had
    }
}

/// The pools of this process and of those that it was forked from.
static FIRST: OnceLock<Pool> = OnceLock::new();

struct Pool {
    process: u32,
    threads: Option<ThreadPool>,
    /// That of a child. Its parent's is beyond use there, and beyond being dropped.
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
