//! The words of `m2m bench`.
use clap::{Args as ClapArgs, Subcommand, ValueEnum};

#[derive(ClapArgs)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) what: What,
}

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum What {
    /// Encrypted requests and their answers, against a plain UDP echo
    ///
    /// The yardsticks send the same bytes as UDP payloads, with as many on their way and from as many addresses: (a) a
    /// server that takes and answers one datagram at a time, (b) one that takes and sends them in batches (recvmmsg,
    /// sendmmsg, GRO, GSO). All three are driven by the same batching client, which is no part of what is measured. With
    /// --inflight 1, where all that counts is how soon an answer leaves, (a) waits for its datagrams in the same kind
    /// of event loop as m2m's server does.
    Request(Request),
    /// What a host forwards between devices, against a plain UDP forwarder
    ///
    /// Every flow is a registered net; each forwards to the next. The plain forwarder looks its destination up by the
    /// source address, one datagram at a time; the batched one does so with recvmmsg and sendmmsg. They forward the
    /// packet that the host forwards, without the host's own envelope.
    Relay(Relay),
    /// Sessions set up in one second on one core, and forged ones refused
    ///
    /// A set-up is INIT, RESP, the first packet and CLOSE, each with another id. The limits on strangers, which would
    /// end this soon, are raised for it.
    Handshake(Pace),
    /// What it costs a server to hold many idle sessions
    ///
    /// Memory is the growth of the server process's resident memory for each session; the sweep is the CPU time in
    /// which the server handles the timeouts of all of them; the rate is that of requests to random ones among them,
    /// against the same to a second server that holds only as many sessions as requests are on their way; the two take
    /// turns.
    Sessions(Sessions),
    /// Bytes on the wire for short messages, beside DTLS, OSCORE and QUIC
    ///
    /// m2m's are measured: machines talk in memory, and their datagrams are counted. The others' are computed from
    /// their specifications.
    Wire,
    /// The processes that are measured
    #[command(hide = true)]
    Server(Serve),
}

/// How long to measure.
#[derive(ClapArgs, Clone, Copy)]
pub(crate) struct Pace {
    /// How often m2m and the yardsticks take turns
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// How long each turn lasts, in milliseconds
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub(crate) millis: u64,
}

#[derive(ClapArgs)]
pub(crate) struct Request {
    /// Bytes of payload in each request, and in its answer
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u16).range(4..=1024))]
    pub(crate) size: u16,
    /// Requests on their way at any time, over all flows; at most 256 for each flow
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) inflight: u32,
    /// Sessions that the requests go round in, each from an address of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub(crate) flows: u32,
    /// Other sessions that the server holds meanwhile
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    pub(crate) idle: u32,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

#[derive(ClapArgs)]
pub(crate) struct Relay {
    /// Registered nets, each of which sends to the next
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=50_000))]
    pub(crate) flows: u32,
    /// Packets on their way at any time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) inflight: u32,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

#[derive(ClapArgs)]
pub(crate) struct Sessions {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) count: u32,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

/// A process that is measured. It is told by lines on its stdin, and ends with that.
#[derive(ClapArgs)]
pub(crate) struct Serve {
    #[arg(value_enum)]
    pub(crate) role: Role,
    /// The core to stay on
    #[arg(long)]
    pub(crate) core: Option<usize>,
    /// Sessions to have room for
    #[arg(long, default_value_t = 0)]
    pub(crate) sessions: usize,
    /// The port of the flows, for a forwarder
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
    /// How many flows there are, for a forwarder
    #[arg(long, default_value_t = 0)]
    pub(crate) flows: u32,
}

/// What a process does for the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// m2m itself: a host that echoes data.
    Net,
    /// A UDP echo, one datagram at a time.
    Echo,
    /// The same in an event loop.
    EchoLoop,
    /// A UDP echo in batches.
    EchoBatched,
    /// A UDP forwarder, one datagram at a time.
    Forward,
    /// A UDP forwarder in batches.
    ForwardBatched,
}
