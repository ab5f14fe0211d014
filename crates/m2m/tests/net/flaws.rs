//! Flaws of the original that only show on real sockets and threads; `docs/flaws.md` has all rows.
use std::{
    fmt::{Debug, Write},
    sync::{Arc, Mutex},
};

use m2m::{ErrorKind, Net, Peer, Session};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::fixture::{builder, device, direct, echo, key, local, pair, serve, server, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn b23_handles_go_between_threads() {
    fn is_shared<T: Clone + Send + Sync + 'static>(_: &T) {}
    let (a, b, session) = pair().await;
    is_shared::<Net>(&a);
    is_shared::<Session>(&session);
    // Plain threads of the operating system, all with the same session, while others open and close their own.
    let runtime = tokio::runtime::Handle::current();
    let threads: Vec<_> = (0..8)
        .map(|n: u8| {
            let (a, session, runtime, peer) = (a.clone(), session.clone(), runtime.clone(), direct(&b, 2));
            std::thread::spawn(move || {
                for round in 0..20 {
                    let data = vec![n, round];
                    let answer = runtime.block_on(soon(async { session.send(data.clone()).await }));
                    assert_eq!(answer.unwrap(), data);
                }
                let own = runtime.block_on(soon(a.connect(peer))).unwrap();
                runtime.block_on(own.close());
            })
        })
        .collect();
    soon(tokio::task::spawn_blocking(|| threads.into_iter().for_each(|thread| thread.join().unwrap())))
        .await
        .unwrap();
}

/// Keeps all that is logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0.lock().unwrap(), "{field}={value:?} ");
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        attributes.record(&mut self.clone());
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        values.record(&mut self.clone());
    }
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn s9_no_key_is_printed() {
    let log = Log::default();
    let logging = tracing::subscriber::set_default(log.clone());
    let host = server(1).await;
    serve(&host, echo());
    let a = device(2, &host).await;
    let session = soon(a.connect(direct(&host, 1))).await.unwrap();
    soon(async { session.send("data").await }).await.unwrap();
    // Where things go wrong, more is said.
    let impostor = builder(2).host(crate::fixture::at(&host), key(1)).open().await.unwrap();
    let refused = soon(impostor.registered()).await.err();
    let wrong = Peer::addr(crate::fixture::id(1), local(9)).key(key(3));
    let error = soon(a.connect(wrong.clone())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    soon(a.shutdown()).await;
    drop(logging);
    let said = log.0.lock().unwrap().clone();
    assert!(!said.is_empty(), "at every level there is something to say");
    let shown = format!("{said} {error:?} {error} {refused:?} {wrong:?} {session:?}");
    // All keys here end in sixteen bytes 0x5a: in hex, in capitals, in decimal, as text.
    for form in ["5a5a", "5A5A", "90, 90", "ZZZZ"] {
        assert!(!shown.contains(form), "{form} in {shown}");
    }
}
