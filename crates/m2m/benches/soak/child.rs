//! A host in a process of its own, which can be killed in the middle of whatever it does.
//!
//! It says what it does in lines on its standard output, each written before what it tells of goes on: so what was not
//! written did not happen. Lines on its standard input ask for its counters; when that ends, so does the host.
use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use m2m::{Code, Id, Net, NetEvent, Request, Router};

use crate::{
    actor::{self, Counters, Temper},
    gate::{Place, local},
    ledger::{Books, Who},
    watch,
};

/// The first word of the command line that makes this program the host.
pub(crate) const ROLE: &str = "host-of-the-soak";
/// Its machines: what arrives at the wrong one is handed over, where the system lets several have one port.
const SHARDS: u8 = if cfg!(target_os = "linux") { 2 } else { 1 };
/// How long a new host may take to say where it is, in tries of a tenth of a second.
const TRIES: u32 = 300;

/// Serves until its standard input ends: `NUMBER PORT FOLDER` on its command line.
pub(crate) fn run(words: &[String]) {
    let [number, port, folder] = words else { return };
    let (Ok(number), Ok(port)) = (number.parse(), port.parse::<u16>()) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio starts");
    runtime.block_on(serve(Who(number), port, folder));
}

async fn serve(who: Who, port: u16, folder: &str) {
    let mut address = local(0, 0);
    address.set_port(port);
    let net = loop {
        let builder = Net::builder(who.id(), actor::key(who)).bind(address).server(true).state_dir(folder);
        let builder = builder.max_router_tm(Duration::from_secs(120)).shards(SHARDS);
        match builder.tune(|config| Temper::Hasty.tune(config)).open().await {
            Ok(net) => break net,
            // Whoever has the port now keeps it.
            Err(_) => address.set_port(0),
        }
    };
    let router = Router::new().any("/work", async |request: Request| {
        let number = request.argument("n").and_then(|text| u64::from_str_radix(text, 16).ok());
        if let (Some(number), Some(peer)) = (number, Who::of(request.peer)) {
            let hex: String = request.payload.iter().map(|byte| format!("{byte:02x}")).collect();
            say(&format!("ran {number} {} {} .{hex}", peer.0, request.code.0));
        }
        actor::answer(number).await
    });
    drop(tokio::spawn(net.serve(router)));
    let mut events = net.events();
    drop(tokio::spawn(async move {
        while let Ok(event) = events.recv().await {
            if let NetEvent::Closed { peer, .. } = event
                && let Some(peer) = Who::of(peer)
            {
                say(&format!("closed {}", peer.0));
            }
        }
    }));
    say(&format!("at {}", net.local_addr()));
    let (asks, mut asked) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if line.is_err() || asks.blocking_send(()).is_err() {
                return;
            }
        }
    });
    while asked.recv().await.is_some() {
        let state = [net.sessions(), net.registrations(), net.half_open()].map(|count| count.to_string());
        let counters = actor::counters(&net).into_iter().map(|(name, count)| format!("{name}={count}"));
        say(&format!("counts {}|{}", state.join(" "), counters.collect::<Vec<_>>().join("|")));
    }
    net.shutdown().await;
}

/// One line, in one piece, gone before this returns.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: then this process is about to end.
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}

/// What the host said of itself last.
#[derive(Clone, Default)]
pub(crate) struct Said {
    address: Option<SocketAddr>,
    pub(crate) sessions: u64,
    pub(crate) registrations: u64,
    pub(crate) half_open: u64,
    counters: Counters,
}

struct Life {
    child: Child,
    input: Option<ChildStdin>,
    reader: JoinHandle<()>,
    said: Arc<Mutex<Said>>,
}

/// The host as the others see it.
pub(crate) struct ChildHost {
    pub(crate) who: Who,
    pub(crate) place: Arc<Place>,
    folder: PathBuf,
    books: Books,
    life: Mutex<Option<Life>>,
    past: Mutex<Counters>,
}

impl ChildHost {
    pub(crate) fn new(who: Who, folder: PathBuf, books: &Books) -> ChildHost {
        let (life, past) = (Mutex::new(None), Mutex::new(Counters::new()));
        ChildHost { who, place: Place::nowhere(), folder, books: books.clone(), life, past }
    }

    /// Begins a life, on the port of the one before if that is free.
    pub(crate) async fn open(&self) -> std::io::Result<()> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ROLE)
            .args([self.who.0.to_string(), self.place.address().port().to_string()])
            .arg(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        let said = Arc::new(Mutex::new(Said::default()));
        let (books, who, told) = (self.books.clone(), self.who, said.clone());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if hear(&books, who, &line, &told).is_none() {
                    books.open().tell(&format!("the host {who} says what nobody understands: {line}"));
                }
            }
        });
        *self.life() = Some(Life { child, input, reader, said: said.clone() });
        for _ in 0..TRIES {
            let address = said.lock().unwrap_or_else(PoisonError::into_inner).address;
            if let Some(address) = address {
                self.place.set_address(address);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(std::io::Error::other("the host in a process of its own does not say where it is"))
    }

    /// Ends it in the middle of whatever it does.
    pub(crate) fn kill(&self) {
        let Some(mut life) = self.life().take() else { return };
        self.books.note("hosts killed", Some(self.who), "");
        let _ = life.child.kill();
        let _ = life.child.wait();
        // What it had written is read to the end, so that it counts before its death.
        let _ = life.reader.join();
        self.books.open().forgot(self.who, None);
        let said = life.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        actor::add(&mut self.past.lock().unwrap_or_else(PoisonError::into_inner), &said.counters);
    }

    /// Ends it in good order.
    pub(crate) fn stop(&self) {
        let Some(mut life) = self.life().take() else { return };
        drop(life.input.take());
        let _ = life.child.wait();
        let _ = life.reader.join();
        self.books.open().forgot(self.who, None);
        let said = life.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        actor::add(&mut self.past.lock().unwrap_or_else(PoisonError::into_inner), &said.counters);
    }

    /// Asks for its counters; [`ChildHost::said`] has them a little later.
    pub(crate) fn ask(&self) {
        if let Some(Life { input: Some(input), .. }) = self.life().as_mut() {
            let _ = input.write_all(b"\n").and_then(|()| input.flush());
        }
    }

    pub(crate) fn said(&self) -> Said {
        let life = self.life();
        let said = life.as_ref().map(|life| life.said.lock().unwrap_or_else(PoisonError::into_inner).clone());
        said.unwrap_or_default()
    }

    /// Counters of all its lives, up to when it was asked last.
    pub(crate) fn counters(&self) -> Counters {
        let mut sum = self.past.lock().unwrap_or_else(PoisonError::into_inner).clone();
        actor::add(&mut sum, &self.said().counters);
        sum
    }

    /// Its resident memory in KiB; none where the system does not say, or while it is dead.
    pub(crate) fn memory_kib(&self) -> Option<u64> {
        watch::memory_kib(self.life().as_ref()?.child.id())
    }

    fn life(&self) -> std::sync::MutexGuard<'_, Option<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ChildHost {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Takes one line; nothing if it makes no sense.
fn hear(books: &Books, who: Who, line: &str, said: &Mutex<Said>) -> Option<()> {
    let (what, rest) = line.split_once(' ')?;
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    match what {
        "at" => said.address = Some(rest.parse().ok()?),
        "closed" => books.open().forgot(who, Some(Who(rest.parse().ok()?))),
        "ran" => {
            let mut words = rest.split(' ');
            let number = words.next()?.parse().ok()?;
            let peer: Id = Who(words.next()?.parse().ok()?).id();
            let method = Code(words.next()?.parse().ok()?);
            let hex = words.next()?.strip_prefix('.')?;
            let byte = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
            let payload: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
            books.open().ran(who, number, peer, method, &payload?);
        }
        "counts" => {
            let mut parts = rest.split('|');
            let mut state = parts.next()?.split(' ').map(|word| word.parse().unwrap_or(0));
            (said.sessions, said.registrations, said.half_open) =
                (state.next()?, state.next()?, state.next()?);
            let pairs = parts.filter_map(|pair| pair.split_once('='));
            said.counters =
                pairs.filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?))).collect();
        }
        _ => return None,
    }
    Some(())
}
