//! The host: the real runtime in a process of its own, told what to say by lines on its standard input.
use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use m2m::{Key, Net, Request, Router};
use m2m_proto::stats::Drop as Reason;

use crate::names;

/// The first word of the command line that makes this program the host.
pub(crate) const ROLE: &str = "host-of-the-flood";

/// Serves until its standard input ends; each line there is answered with the counters.
pub(crate) fn run() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio starts");
    runtime.block_on(async {
        let folder = tempfile::tempdir().expect("there is room for the state");
        let key = Key::from_bytes(&names::KEY).expect("32 bytes are a key");
        let net = Net::builder(names::HOST, key).bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let net =
            net.server(true).state_dir(folder.path().join("state")).open().await.expect("the host opens");
        drop(tokio::spawn(net.serve(Router::new().data(async |request: Request| request.payload))));
        println!("{}", net.local_addr());
        let (asks, mut asked) = tokio::sync::mpsc::channel(1);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                if line.is_err() || asks.blocking_send(()).is_err() {
                    return;
                }
            }
        });
        while asked.recv().await.is_some() {
            let stats = net.stats();
            let mut counts = vec![
                ("in", stats.datagrams_in),
                ("out", stats.datagrams_out),
                ("handshakes", stats.handshakes),
                ("cookies", stats.cookies),
                ("hints", stats.hints_sent),
                ("relayed", stats.relayed),
            ];
            counts.extend(Reason::ALL.into_iter().map(|why| (why.name(), stats.dropped(why))));
            let words: Vec<String> = counts.iter().map(|(name, count)| format!("{name}={count}")).collect();
            println!("{}", words.join(" "));
        }
    });
}

/// Counters of the host, by name.
#[derive(Clone, Default)]
pub(crate) struct Counters(pub(crate) Vec<(String, u64)>);

impl Counters {
    pub(crate) fn get(&self, wanted: &str) -> u64 {
        self.0.iter().find(|(name, _)| name == wanted).map_or(0, |(_, count)| *count)
    }

    /// What was counted between then and now.
    pub(crate) fn since(&self, before: &Counters) -> Counters {
        Counters(self.0.iter().map(|(name, count)| (name.clone(), count - before.get(name))).collect())
    }

    pub(crate) fn add(&mut self, other: &Counters) {
        self.0 = other.0.iter().map(|(name, count)| (name.clone(), count + self.get(name))).collect();
    }
}

/// The host as the others see it.
pub(crate) struct Server {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
    pub(crate) memory_at_start: u64,
}

impl Server {
    pub(crate) fn start() -> Server {
        let program = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(program)
            .arg(ROLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the host starts");
        pin(child.id(), 0);
        let input = child.stdin.take();
        let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("the host says where it is");
        let address = line.trim().parse().expect("that is an address");
        let mut server = Server { child, input, output, address, memory_at_start: 0 };
        server.memory_at_start = server.memory_kib();
        server
    }

    pub(crate) fn counters(&mut self) -> Counters {
        let input = self.input.as_mut().expect("the host is there");
        input.write_all(b"\n").and_then(|()| input.flush()).expect("the host listens");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the host answers");
        let pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
        Counters(pairs.map(|(name, count)| (name.to_owned(), count.parse().unwrap_or(0))).collect())
    }

    /// CPU time of all its threads (Linux: nanoseconds in `schedstat`). Elsewhere 0, and only rates are told.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", self.child.id())) else { return 0.0 };
        let of_task = |task: std::io::Result<std::fs::DirEntry>| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        };
        tasks.filter_map(of_task).sum::<u64>() as f64 / 1e9
    }

    /// Datagrams that the system dropped because the host's socket was full (Linux); 0 where it does not say.
    pub(crate) fn lost(&self) -> u64 {
        let table = std::fs::read_to_string("/proc/net/udp").unwrap_or_default();
        let port = format!(":{:04X}", self.address.port());
        let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row.get(1).is_some_and(|local| local.ends_with(&port)));
        row.and_then(|row| row.last()?.parse().ok()).unwrap_or(0)
    }

    /// Its resident memory in KiB; 0 where the system does not say.
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keeps a process, and the threads that it will start, on one core, where the system has a program for that.
pub(crate) fn pin(process: u32, core: usize) {
    let many = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > core);
    let pinned = many
        && Command::new("taskset")
            .args(["-a", "-p", "-c", &core.to_string(), &process.to_string()])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
    if !pinned {
        eprintln!("process {process} is not kept on core {core}: the figures will be rougher");
    }
}
