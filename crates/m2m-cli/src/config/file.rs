//! The configuration file: TOML, every key known, each mistake named with its line.
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use m2m::Id;
use m2m::names::{Endpoint, PeerName};
use serde::Deserialize;
use toml::Spanned;

use super::parse_endpoint;
use crate::args::{parse_id, parse_public, parse_seconds, parse_shards};
use crate::exit::Failure;

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    id: Option<Spanned<String>>,
    key_file: Option<PathBuf>,
    host: Option<Spanned<OneOrMore<String>>>,
    host_key_file: Option<OneOrMore<PathBuf>>,
    peer_key_file: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    timeout: Option<Spanned<Seconds>>,
    json: Option<bool>,
    shards: Option<Spanned<Shards>>,
    #[serde(default)]
    peers: BTreeMap<Spanned<String>, Spanned<RawPeer>>,
}

/// A value, or several in brackets.
#[derive(Deserialize)]
#[serde(untagged, expecting = "write \"VALUE\", or [\"VALUE\", \"VALUE\"]")]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> OneOrMore<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }
    }
}

/// A peer's name, or that and its device key.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a peer is \"ID@HOST:PORT\", or { peer = \"ID@HOST:PORT\", pin = \"64 hex digits\" }"
)]
enum RawPeer {
    Name(String),
    Pinned(RawPinned),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPinned {
    peer: String,
    pin: Option<String>,
}

/// What an alias stands for.
pub(super) struct Alias {
    pub(super) name: PeerName,
    pub(super) pin: Option<[u8; 32]>,
}

/// TOML tells 30 from 30.0; people don't.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Whole(u32),
    Fraction(f64),
}

/// A number, or "auto".
#[derive(Deserialize)]
#[serde(untagged, expecting = "write a number, or \"auto\"")]
enum Shards {
    Count(u32),
    Word(String),
}

/// What the file says, each value checked, paths relative to the file's folder made whole.
#[derive(Default)]
pub(super) struct Checked {
    pub(super) id: Option<Id>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) hosts: Option<Vec<Endpoint>>,
    pub(super) host_key_files: Option<Vec<PathBuf>>,
    pub(super) peer_key_file: Option<PathBuf>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) timeout: Option<f64>,
    pub(super) json: Option<bool>,
    pub(super) shards: Option<u8>,
    pub(super) peers: BTreeMap<String, Alias>,
}

/// Reads a file; nothing if there is none.
///
/// # Errors
/// [`Failure::Configuration`]: the file, the line, what is wrong, what to try.
pub(super) fn read(path: &Path) -> Result<Option<Checked>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let what = format!(
                "{}: can't read the configuration: {error}. Mend it, or name another with --config FILE",
                path.display()
            );
            return Err(Failure::Configuration(what));
        }
    };
    parse(path, &text).map(Some)
}

fn parse(path: &Path, text: &str) -> Result<Checked, Failure> {
    let document = Document { path, text };
    let raw: Raw = toml::from_str(text).map_err(|error| {
        let what = error.message().lines().next().unwrap_or("it is no TOML").to_owned();
        document.wrong(error.span(), &what, "Correct or remove that line")
    })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let beside = |path: Option<PathBuf>| path.map(|path| folder.join(path));
    let seconds = |text: &Spanned<Seconds>| match text.as_ref() {
        Seconds::Whole(whole) => whole.to_string(),
        Seconds::Fraction(fraction) => fraction.to_string(),
    };
    let timeout = raw.timeout.map(|timeout| Spanned::new(timeout.span(), seconds(&timeout)));
    let count = |text: &Spanned<Shards>| match text.as_ref() {
        Shards::Count(count) => count.to_string(),
        Shards::Word(word) => word.clone(),
    };
    let shards = raw.shards.map(|shards| Spanned::new(shards.span(), count(&shards)));
    Ok(Checked {
        id: document.check("id", raw.id, parse_id)?,
        key_file: beside(raw.key_file),
        hosts: raw.host.map(|hosts| document.hosts(hosts)).transpose()?,
        host_key_files: raw
            .host_key_file
            .map(|paths| paths.into_vec().into_iter().map(|path| folder.join(path)).collect()),
        peer_key_file: beside(raw.peer_key_file),
        state_dir: beside(raw.state_dir),
        timeout: document.check("timeout", timeout, parse_seconds)?,
        json: raw.json,
        shards: document.check("shards", shards, parse_shards)?,
        peers: raw.peers.into_iter().map(|peer| document.alias(peer)).collect::<Result<_, _>>()?,
    })
}

/// A file's text, to say where in it something is wrong.
struct Document<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Document<'_> {
    fn check<T>(
        &self,
        name: &str,
        value: Option<Spanned<String>>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Failure> {
        let Some(value) = value else { return Ok(None) };
        let wrong = |why: String| {
            let what = format!("{name} is \"{}\": {why}", value.as_ref());
            self.wrong(Some(value.span()), &what, "Correct or remove that line")
        };
        parse(value.as_ref()).map(Some).map_err(wrong)
    }

    fn hosts(&self, hosts: Spanned<OneOrMore<String>>) -> Result<Vec<Endpoint>, Failure> {
        let span = hosts.span();
        let check = |host| {
            let host = self.check("host", Some(Spanned::new(span.clone(), host)), parse_endpoint);
            host.transpose()
        };
        hosts.into_inner().into_vec().into_iter().filter_map(check).collect()
    }

    fn alias(&self, (alias, peer): (Spanned<String>, Spanned<RawPeer>)) -> Result<(String, Alias), Failure> {
        if !matches!(alias.as_ref().parse(), Ok(PeerName::Alias(_))) {
            let what = format!("\"{}\" can't be an alias: it reads as an id or an address", alias.as_ref());
            return Err(self.wrong(
                Some(alias.span()),
                &what,
                "Choose a word that has other letters than a to f",
            ));
        }
        let span = peer.span();
        let (named, pin) = match peer.into_inner() {
            RawPeer::Name(name) => (name, None),
            RawPeer::Pinned(pinned) => (pinned.peer, pinned.pin),
        };
        let advice = "Write ID, ID@host:port or host:port";
        let wrong = |why: &str| {
            let what = format!("the peer {} is \"{named}\": {why}", alias.as_ref());
            self.wrong(Some(span.clone()), &what, advice)
        };
        let name = match named.parse() {
            Ok(PeerName::Alias(_)) => return Err(wrong("that is neither an id nor an address")),
            Ok(name) => name,
            Err(error) => return Err(wrong(&error.to_string())),
        };
        let wrong = |why: String| {
            let what = format!("the pin of {} is {why}", alias.as_ref());
            self.wrong(Some(span.clone()), &what, "Correct or remove it")
        };
        let pin = pin.map(|pin| parse_public(&pin)).transpose().map_err(wrong)?;
        Ok((alias.into_inner(), Alias { name, pin }))
    }

    fn wrong(&self, span: Option<Range<usize>>, what: &str, advice: &str) -> Failure {
        let start = span.map_or(0, |span| span.start);
        let before = self.text.get(..start).unwrap_or(self.text);
        let line = 1 + before.matches('\n').count();
        Failure::Configuration(format!("{}, line {line}: {what}. {advice}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let failure =
            parse(Path::new("/etc/m2m.toml"), text).err().unwrap_or_else(|| panic!("taken: {text}"));
        failure.message()
    }

    #[test]
    fn every_mistake_has_its_line() {
        let cases = [
            ("id = \"1\"\nhots = \"x\"\n", 2, "hots"),
            ("id = \"1\n", 1, ""),
            ("\n\nid = 5\n", 3, "string"),
            ("# one\nid = \"xyz\"\n", 2, "hex"),
            ("timeout = \"5\"\n", 1, ""),
            ("id = \"1\"\ntimeout = -1\n", 2, ""),
            ("id = \"1\"\ntimeout = 0\n", 2, "seconds"),
            ("host = \"1@\"\n", 1, "name or address"),
            ("id = \"1\"\nhost = [\"1@a.example\", \"8@\"]\n", 2, "host is \"8@\""),
            ("id = \"1\"\nhost = 5\n", 2, "write \"VALUE\""),
            ("[peers]\nbeef = \"2\"\n", 2, "alias"),
            ("[peers]\nkitchen = \"cellar\"\n", 2, "cellar"),
            ("[peers]\nkitchen = \"2@host:0\"\n", 2, "port"),
            ("[peers]\nkitchen = { peer = \"2\", pin = \"0a\" }\n", 2, "64 hex digits"),
            ("[peers]\nkitchen = { pin = \"0a\" }\n", 2, "a peer is"),
            ("[peers]\nkitchen = { peer = \"2\", pni = \"0a\" }\n", 2, "a peer is"),
            ("id = \"1\"\nid = \"2\"\n", 2, "duplicate"),
            ("shards = 0\n", 1, "1 to 128"),
            ("shards = \"many\"\n", 1, "auto"),
        ];
        for (text, line, word) in cases {
            let message = refused(text);
            assert!(message.starts_with(&format!("/etc/m2m.toml, line {line}: ")), "{text}: {message}");
            assert!(message.contains(word), "{text}: {message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let text = "key_file = \"a.key\"\nstate_dir = \"/var/m2m\"\ntimeout = 2.5\n";
        let checked = parse(Path::new("/etc/m2m.toml"), text).unwrap();
        assert_eq!(checked.key_file, Some("/etc/a.key".into()));
        assert_eq!(checked.state_dir, Some("/var/m2m".into()));
        assert_eq!(checked.timeout, Some(2.5));
    }

    #[test]
    fn shards_are_a_number_or_as_many_as_there_are_cores() {
        let shards = |text: &str| parse(Path::new("m2m.toml"), text).unwrap().shards;
        assert_eq!(shards("shards = 3\n"), Some(3));
        assert!(shards("shards = \"auto\"\n") >= Some(1));
        assert_eq!(shards("shards = \"3\"\n"), Some(3));
    }

    #[test]
    fn an_empty_file_says_nothing() {
        let checked = parse(Path::new("m2m.toml"), "").unwrap();
        assert!(checked.id.is_none() && checked.peers.is_empty());
    }
}
