//! The threads on which SQLite may block.
//!
//! SQLite is a library, not a server: it has no asynchronous form, and whoever calls it waits for
//! the disk. So each connection has a thread of its own, and the event loop sends it jobs.

use std::{error::Error, pin::Pin, sync::mpsc, thread};

use diesel_async::sync_connection_wrapper::SpawnBlocking;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;
type Lost = Box<dyn Error + Send + Sync>;

/// A thread that runs the jobs of one connection in order, and ends with it.
pub struct SqliteThread {
    // `None` when the system had no thread to give.
    jobs: Option<mpsc::Sender<Job>>,
}

impl SpawnBlocking for SqliteThread {
    fn get_runtime() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let spawned = thread::Builder::new()
            .name("v2-sqlite".into())
            .stack_size(1 << 20)
            .spawn(move || inbox.into_iter().for_each(|job| job()));
        Self { jobs: spawned.is_ok().then_some(jobs) }
    }

    fn spawn_blocking<'a, R: Send + 'static>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> Pin<Box<dyn Future<Output = Result<R, Lost>> + Send + 'a>> {
        let (answer, reply) = oneshot::channel();
        let job = move || drop(answer.send(task()));
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(Box::new(job)).is_ok());
        if sent != Some(true) {
            return Box::pin(std::future::ready(Err("the SQLite thread is gone".into())));
        }
        // Dropped early, the job goes on by itself; its lease then closes the connection.
        Box::pin(async move { reply.await.map_err(Lost::from) })
    }
}
