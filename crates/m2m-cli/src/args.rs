//! The words of the command line: global flags and verbs.
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Args as ClapArgs, Parser, Subcommand};
use m2m::Id;
use m2m::names::{Endpoint, PeerName};

/// What stands below `-h`.
const ENVIRONMENT: &str = "\
Keys come from files or the environment (M2M_KEY, M2M_HOST_KEY, M2M_PEER_KEY in hex;
M2M_KEY_FILE, M2M_HOST_KEY_FILE, M2M_PEER_KEY_FILE), never from the command line. The other
flags may stand in M2M_ID, M2M_HOST, M2M_STATE_DIR, M2M_TIMEOUT, M2M_JSON, or in
m2m/config.toml below ~/.config. A flag wins over the environment, that over the file. In a
variable, several hosts, or their keys, have commas between them.

Exit codes: 0 ok, 1 other, 2 usage, 3 timeout or unreachable, 4 the peer answered 4.xx,
5 the peer answered 5.xx, 6 authentication, 7 configuration.";

/// What stands below `--help`, besides.
const CONFIGURATION: &str = "\
The configuration file is m2m/config.toml in $XDG_CONFIG_HOME or ~/.config, or what --config
or M2M_CONFIG names. All lines may be missing; relative paths start at the file's folder:

    id = \"3\"                        # as --id
    key_file = \"app.key\"            # as --key-file
    host = \"1@relay.example:9527\"   # as --host; several: [\"1@a.example\", \"8@b.example\"]
    host_key_file = \"host.key\"      # as --host-key-file; one for each: [\"a.key\", \"b.key\"]
    peer_key_file = \"dev.key\"       # as --peer-key-file
    state_dir = \"state\"             # as --state-dir
    timeout = 30                    # as --timeout
    shards = \"auto\"                 # as --shards of `m2m server`: a number, or \"auto\"
    json = false                    # as --json

    [peers]                         # other names for peers: m2m send kitchen hello
    kitchen = \"2\"
    pump = \"4@10.0.0.7:9528\"
    # with --pin: no other device that has its key will do
    safe = { peer = \"5\", pin = \"64 hex digits of `m2m id` there\" }";

/// Machines that find each other by id, behind any NAT, and talk over encrypted sessions.
#[derive(Parser)]
#[command(name = "m2m", version, after_help = ENVIRONMENT, after_long_help = format!("{ENVIRONMENT}\n\n{CONFIGURATION}"), max_term_width = 110)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb understands.
#[derive(ClapArgs, Default)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Configuration file [default: m2m/config.toml in the XDG config folder]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// This net's id: up to 32 hex digits; `1` is id 1
    #[arg(long, global = true, value_name = "ID", value_parser = parse_id)]
    pub(crate) id: Option<Id>,
    /// This net's key
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// A host to register with and to reach peers through; may be given several times, the first is preferred
    #[arg(long = "host", global = true, value_name = "[ID@]NAME[:PORT]")]
    pub(crate) hosts: Vec<Endpoint>,
    /// The hosts' key, or one for each --host in the same order [default: this net's own, one key for the fleet]
    #[arg(long = "host-key-file", global = true, value_name = "FILE")]
    pub(crate) host_key_files: Vec<PathBuf>,
    /// The peer's key, or a pair key for it [default: this net's own]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) peer_key_file: Option<PathBuf>,
    /// The peer's device key, 64 hex digits as `m2m id` shows them there: no other device with its key will do
    #[arg(long, global = true, value_name = "DEVICE", value_parser = parse_public)]
    pub(crate) pin: Option<[u8; 32]>,
    /// Where the device key, epochs and claims are kept [default: in the XDG state folder, by id and key]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// One JSON object a line on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say more; twice or thrice for still more
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,
    /// Say only what fails
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Longest wait for an answer, the way there included [default: 30]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) timeout: Option<f64>,
}

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Make a key: 32 hex digits, or a pair key
    Keygen(Keygen),
    /// Change a peer's net key from afar
    #[command(subcommand)]
    Key(KeyTask),
    /// Show this net's id, its device's public key and fingerprint, and where its state is
    Id,
    /// Run a host: nets register with it, and it forwards between them
    Server(Server),
    /// Run a device: it registers with its host and answers
    Node(Node),
    /// Send text to a peer and print what it answers
    Send(Send),
    /// Read a resource of a peer
    Get(Request),
    /// POST to a resource of a peer
    Post(RequestWithPayload),
    /// Replace a resource of a peer
    Put(RequestWithPayload),
    /// Delete a resource of a peer
    Delete(Request),
    /// Read a part of a resource, named by the payload (RFC 8132)
    Fetch(RequestWithPayload),
    /// Change a part of a resource (RFC 8132)
    Patch(RequestWithPayload),
    /// Measure the way to a peer and back
    Ping(Ping),
    /// Ask the host whether a peer is online: exit 0 if it is, 3 if not
    Online(Online),
    /// Show in one process, on real sockets, what m2m does: hosts, devices and an app
    Demo,
    /// Measure m2m on this machine: requests, relaying, handshakes, memory, bytes
    ///
    /// Each bench starts a server in a process of its own, on a core of its own, and drives it over the loopback from
    /// another core. The yardsticks (plain UDP without encryption, without sessions, without any promise) run in
    /// processes beside it, and take turns with it round by round: so what else the machine does meets all alike, and
    /// the ratios hold where absolute figures drift. All figures are medians over the rounds. Nothing leaves this
    /// machine, and no key, id or file of yours is used. Measure with a release build.
    Bench(crate::commands::bench::words::Bench),
    /// Print what a shell needs to complete m2m's words
    Completions(Completions),
    /// Print the manual page, in roff
    Man,
}

#[derive(ClapArgs)]
pub(crate) struct Keygen {
    /// Write a new file that only its owner can read, in place of stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Make the key that lets A open sessions to B and nothing else, from B's key in --key-file
    #[arg(long, num_args = 2, value_names = ["A", "B"], value_parser = parse_id)]
    pub(crate) pair: Option<Vec<Id>>,
    /// Make the key from a passphrase, asked for on the terminal or read from stdin
    #[arg(long, conflicts_with = "pair")]
    pub(crate) passphrase: bool,
    /// Keeps fleets with the same passphrase apart; no secret
    #[arg(long, requires = "passphrase", default_value = "")]
    pub(crate) label: String,
}

#[derive(Subcommand)]
pub(crate) enum KeyTask {
    /// Give a peer that allows it (--allow-key-change) a new net key; --peer-key-file is the one that it has now
    Set(KeySet),
}

#[derive(ClapArgs)]
pub(crate) struct KeySet {
    #[arg(help = PEER_HELP)]
    pub(crate) peer: PeerName,
    /// The key that it is to have, as `m2m keygen` makes one
    #[arg(long, value_name = "FILE")]
    pub(crate) new_key_file: PathBuf,
}

#[derive(ClapArgs)]
pub(crate) struct Server {
    /// Where to listen [default: port 9527 of every address]
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_bind)]
    pub(crate) bind: Option<SocketAddr>,
    /// Serve with so many cores, 1 to 128, or `auto` for all of this machine; Linux only; limits hold for each [default: 1]
    #[arg(long, value_name = "N", value_parser = parse_shards)]
    pub(crate) shards: Option<u8>,
    /// Longest time that a registration lasts without being renewed [default: 600]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) max_router_tm: Option<f64>,
    /// Register only ids that are claimed already, by their devices: see `m2m server claims pin`
    #[arg(long)]
    pub(crate) strict: bool,
    /// Let holders of this net's key replace it from afar
    #[arg(long)]
    pub(crate) allow_key_change: bool,
    #[command(subcommand)]
    pub(crate) task: Option<ServerTask>,
}

/// What there is to do beside a running host.
#[derive(Subcommand)]
pub(crate) enum ServerTask {
    /// Show and change which device key each id belongs to, while the host runs or not
    ///
    /// A running host acts within a second on what `pin` and `forget` change: a registration that rests on no claim any
    /// more ends, and its device is told when it comes back.
    #[command(subcommand)]
    Claims(Claims),
}

#[derive(Subcommand)]
pub(crate) enum Claims {
    /// Show each claimed id, its device's public key, and since when
    List,
    /// Let the next device that comes have this id; a running host acts on it within a second
    Forget {
        /// The claimed id
        #[arg(value_name = "ID", value_parser = parse_id)]
        claimed: Id,
    },
    /// Give this id to one device, whoever had it; a running host acts on it within a second
    Pin {
        /// The id to claim
        #[arg(value_name = "ID", value_parser = parse_id)]
        claimed: Id,
        /// The device's public key: 64 hex digits, as `m2m id` shows them
        #[arg(value_name = "DEVICE", value_parser = parse_public)]
        public: [u8; 32],
    },
}

#[derive(ClapArgs)]
pub(crate) struct Node {
    /// Where to listen [default: any free port]
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_bind)]
    pub(crate) bind: Option<SocketAddr>,
    /// Let holders of this net's key replace it from afar
    #[arg(long)]
    pub(crate) allow_key_change: bool,
    /// Answer data with the same data; without it, data is printed
    #[arg(long)]
    pub(crate) echo: bool,
    /// A resource that can be read and replaced; may be given several times
    #[arg(long = "resource", value_name = "/PATH=VALUE", value_parser = parse_resource)]
    pub(crate) resources: Vec<Resource>,
}

/// A resource with its first value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) path: String,
    pub(crate) value: String,
}

/// The most that the protocol has room for in its tokens.
const MAX_SHARDS: u8 = 128;

const PEER_HELP: &str = "ID, ID@host:port, host:port, or an alias of the configuration";

#[derive(ClapArgs)]
pub(crate) struct Send {
    #[arg(help = PEER_HELP)]
    pub(crate) peer: PeerName,
    /// What to send; `-` sends each line of stdin and prints the answers in order
    #[arg(allow_hyphen_values = true)]
    pub(crate) text: String,
}

#[derive(ClapArgs)]
pub(crate) struct Request {
    #[arg(help = PEER_HELP)]
    pub(crate) peer: PeerName,
    /// Such as /temp or /log?last=5
    pub(crate) path: String,
}

#[derive(ClapArgs)]
pub(crate) struct RequestWithPayload {
    #[command(flatten)]
    pub(crate) request: Request,
    /// What to send; `-` is stdin
    #[arg(conflicts_with_all = ["data", "file"], allow_hyphen_values = true)]
    pub(crate) payload: Option<String>,
    /// What to send
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) data: Option<String>,
    /// A file that holds what to send; `-` is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with = "data")]
    pub(crate) file: Option<PathBuf>,
    /// The payload's content format, by its number: 0 text, 50 JSON, 60 CBOR (RFC 7252 section 12.3)
    #[arg(long, value_name = "NUMBER")]
    pub(crate) format: Option<u16>,
}

#[derive(ClapArgs)]
pub(crate) struct Ping {
    #[arg(help = PEER_HELP)]
    pub(crate) peer: PeerName,
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: u32,
    /// Wait between two
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    pub(crate) interval: f64,
}

#[derive(ClapArgs)]
pub(crate) struct Online {
    /// Its id, or an alias of the configuration
    pub(crate) peer: PeerName,
}

#[derive(ClapArgs)]
pub(crate) struct Completions {
    pub(crate) shell: clap_complete::Shell,
}

/// How many shards a host has: a number, or `auto` for as many as there are cores.
pub(crate) fn parse_shards(text: &str) -> Result<u8, String> {
    let count = match text.trim() {
        "auto" => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(MAX_SHARDS.into())),
        text => text.parse().unwrap_or(0),
    };
    u8::try_from(count)
        .ok()
        .filter(|count| (1..=MAX_SHARDS).contains(count))
        .ok_or_else(|| format!("1 to {MAX_SHARDS}, or auto"))
}

/// An id that a net can have.
pub(crate) fn parse_id(text: &str) -> Result<Id, String> {
    let id = Id::from_hex(text.trim()).map_err(|error| error.to_string())?;
    if id.is_reserved() {
        return Err("ids of zeros only, and those that start with ff, are no net's".into());
    }
    Ok(id)
}

/// Seconds, with a fraction if wanted; a day at most, which is forever for a command.
pub(crate) fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.trim().parse().ok().filter(|seconds| (0.001..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| "a number of seconds, from 0.001 to 86400".into())
}

/// Where to listen: an address of this machine, or all of them.
fn parse_bind(text: &str) -> Result<SocketAddr, String> {
    let wrong = "an address and a port, such as [::]:9530 for all addresses, 0.0.0.0:9530 for all of IPv4, or \
                 127.0.0.1:9530 for this machine alone";
    text.trim().parse().map_err(|_| wrong.into())
}

/// A device's public key, in hex.
pub(crate) fn parse_public(text: &str) -> Result<[u8; 32], String> {
    let wrong = || "64 hex digits, the line \"device\" of `m2m id`".to_owned();
    let text = text.trim();
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut public = [0; 32];
    for (byte, digits) in public.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
    }
    Ok(public)
}

fn parse_resource(text: &str) -> Result<Resource, String> {
    let (path, value) = text.split_once('=').ok_or("write it as /PATH=VALUE, such as /temp=21")?;
    if !path.starts_with('/') || path.len() < 2 {
        return Err("its path starts with a slash, as in /temp=21".into());
    }
    Ok(Resource { path: path.into(), value: value.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_behind_the_verb() {
        for words in [["m2m", "--id", "2", "online", "3"], ["m2m", "online", "--id", "2", "3"]] {
            let args = Args::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(args.globals.id, Some(Id::from_hex("2").unwrap()));
        }
    }

    #[test]
    fn ids_and_times_that_cannot_be_are_refused() {
        assert!(parse_id("0").is_err() && parse_id("xyz").is_err() && parse_id(&"f".repeat(32)).is_err());
        for text in ["0", "-1", "nan", "inf", "1e9", "soon"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
        assert_eq!(parse_seconds("0.5"), Ok(0.5));
    }

    #[test]
    fn a_public_key_has_64_digits() {
        assert_eq!(parse_public(&"0a".repeat(32)), Ok([10; 32]));
        for text in ["", "0a", &"0a".repeat(33), &"+a".repeat(32), &"é".repeat(32)] {
            assert!(parse_public(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_resource_has_a_path_and_a_value() {
        let temp = Resource { path: "/temp".into(), value: "21=x".into() };
        assert_eq!(parse_resource("/temp=21=x"), Ok(temp));
        for text in ["/temp", "temp=21", "/=21", "=21"] {
            assert!(parse_resource(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_sent_may_start_with_a_hyphen() {
        for text in ["-hello", "-5", "-", "--", "--unheard-of"] {
            let args = Args::try_parse_from(["m2m", "send", "2", "--", text]);
            let Verb::Send(send) = args.unwrap().verb else { panic!("{text}") };
            assert_eq!(send.text, text);
        }
        for text in ["-hello", "-5", "-", "-vv5", "--unheard-of"] {
            let args = Args::try_parse_from(["m2m", "send", "--json", "2", text, "--id", "3"]);
            let args = args.unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(args.globals.json && args.globals.id.is_some());
            let Verb::Send(send) = args.verb else { panic!("{text}") };
            assert_eq!(send.text, text);
            for words in [&[text, "--format", "0"][..], &["-d", text], &["--data", text]] {
                let words = [&["m2m", "put", "2", "/temp"], words].concat();
                let args = Args::try_parse_from(words).unwrap_or_else(|error| panic!("{text}: {error}"));
                let Verb::Put(put) = args.verb else { panic!("{text}") };
                assert_eq!(put.payload.or(put.data).as_deref(), Some(text));
            }
        }
    }

    #[test]
    fn a_payload_has_one_source() {
        let parse = |words: &[&str]| Args::try_parse_from([&["m2m", "put", "2", "/led"], words].concat());
        assert!(parse(&["on"]).is_ok() && parse(&["-d", "on"]).is_ok() && parse(&["-f", "-"]).is_ok());
        for words in [&["on", "-d", "off"][..], &["-d", "on", "-f", "x"], &["on", "-f", "x"]] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
