//! The settings of a run: flags before the environment before the configuration file.
//!
//! ```toml
//! id = "3"
//! key_file = "app.key"                # relative to this file's folder
//! host = "1@relay.example:9527"       # several: ["1@a.example", "8@b.example"], the first is preferred
//! host_key_file = "host.key"          # for all of them; one for each: ["a.key", "b.key"]
//! peer_key_file = "dev.key"
//! state_dir = "state"
//! timeout = 30
//! json = false
//!
//! [peers]
//! kitchen = "2"
//! pump = "4@10.0.0.7:9528"
//! safe = { peer = "5", pin = "..." }   # 64 hex digits: the device key that it has to prove
//! ```
mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use m2m::keyfile::{KeyFile, KeyWarning};
use m2m::names::{Endpoint, PeerName};
use m2m::{Id, Key};
use zeroize::Zeroizing;

use crate::args::{Globals, parse_id, parse_seconds};
use crate::exit::Failure;
use crate::output;

/// Total wall time of a request where nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that flags, environment and file said, checked.
pub(crate) struct Settings {
    pub(crate) id: Option<Id>,
    pub(crate) key: Option<KeySource>,
    /// The first is preferred.
    pub(crate) hosts: Vec<Endpoint>,
    /// None, one for all hosts, or one for each, in their order: [`Settings::hosts_and_keys`] checks that.
    host_keys: Vec<KeySource>,
    pub(crate) peer_key: Option<KeySource>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) timeout: Duration,
    pub(crate) json: bool,
    /// Of a host.
    pub(crate) shards: Option<u8>,
    pin: Option<[u8; 32]>,
    peers: BTreeMap<String, file::Alias>,
    /// The file that was read, for messages about what it lacks.
    file: Option<PathBuf>,
}

impl Settings {
    /// Reads the environment and the configuration file, and lays the flags over them.
    ///
    /// # Errors
    /// [`Failure::Configuration`], which names the file and line, or the variable.
    pub(crate) fn load(flags: &Globals) -> Result<Settings, Failure> {
        Settings::merge(flags, |name| std::env::var(name).ok())
    }

    fn merge(flags: &Globals, variable: impl Fn(&str) -> Option<String>) -> Result<Settings, Failure> {
        let env = Environment(&variable);
        let (path, mut file) = read_file(flags.config.as_deref(), &env)?;
        let state_dir = env.path("M2M_STATE_DIR").or_else(|| file.state_dir.take());
        Ok(Settings {
            id: pick(flags.id, env.parse("M2M_ID", parse_id)?, file.id),
            key: key(flags.key_file.clone(), &env, "M2M_KEY", file.key_file)?,
            hosts: pick(some(&flags.hosts), env.parse("M2M_HOST", parse_endpoints)?, file.hosts)
                .unwrap_or_default(),
            host_keys: keys(some(&flags.host_key_files), &env, "M2M_HOST_KEY", file.host_key_files)?,
            peer_key: key(flags.peer_key_file.clone(), &env, "M2M_PEER_KEY", file.peer_key_file)?,
            state_dir: flags.state_dir.clone().or(state_dir),
            timeout: pick(flags.timeout, env.parse("M2M_TIMEOUT", parse_seconds)?, file.timeout)
                .map_or(TIMEOUT, Duration::from_secs_f64),
            json: flags.json || env.parse("M2M_JSON", parse_switch)?.or(file.json).unwrap_or(false),
            shards: file.shards,
            pin: flags.pin,
            peers: file.peers,
            file: path,
        })
    }

    /// This net's id, for commands that can't do with a random one.
    pub(crate) fn need_id(&self) -> Result<Id, Failure> {
        self.id
            .ok_or_else(|| Failure::Configuration("this net needs an id: give --id ID, or set M2M_ID".into()))
    }

    /// This net's key, for commands that can't do with a random one.
    pub(crate) fn need_key(&self) -> Result<KeyFile, Failure> {
        let source = self.key.as_ref().ok_or_else(|| {
            Failure::Configuration(
                "this net needs a key: give --key-file FILE, or set M2M_KEY. `m2m keygen -o FILE` makes one"
                    .into(),
            )
        })?;
        source.read()
    }

    /// Each host with its key; without one of its own, this net's: one key for the fleet.
    ///
    /// # Errors
    /// A key is missing, can't be read, or there are neither one nor as many as hosts.
    pub(crate) fn hosts_and_keys(&self) -> Result<Vec<(Endpoint, Key)>, Failure> {
        let (hosts, keys) = (self.hosts.len(), self.host_keys.len());
        let hosts_with = |keys: Vec<Key>| self.hosts.iter().cloned().zip(keys).collect();
        if keys <= 1 {
            let missing = "the host's key is needed: give --host-key-file FILE";
            let key = self.key_or_own(self.host_keys.first(), missing)?;
            return Ok(hosts_with(vec![key; hosts]));
        }
        if keys != hosts {
            let (hosts, keys) = (counted(hosts, "host"), counted(keys, "host key"));
            return Err(Failure::Configuration(format!(
                "{hosts} and {keys}: give one --host-key-file for all hosts, or one for each --host in the same order"
            )));
        }
        let read = |source: &KeySource| source.read().map(Key::from);
        Ok(hosts_with(self.host_keys.iter().map(read).collect::<Result<_, _>>()?))
    }

    /// The peer's key; without one of its own, this net's: one key for the fleet.
    pub(crate) fn peer_key(&self) -> Result<Key, Failure> {
        self.key_or_own(self.peer_key.as_ref(), "the peer's key is needed: give --peer-key-file FILE")
    }

    fn key_or_own(&self, source: Option<&KeySource>, missing: &str) -> Result<Key, Failure> {
        let Some(source) = source.or(self.key.as_ref()) else {
            let own = "or --key-file FILE if one key serves the whole fleet";
            return Err(Failure::Configuration(format!("{missing}, {own}")));
        };
        Ok(Key::from(source.read()?))
    }

    /// A peer with its alias looked up.
    pub(crate) fn peer(&self, name: &PeerName) -> Result<PeerName, Failure> {
        let PeerName::Alias(alias) = name else { return Ok(name.clone()) };
        if let Some(peer) = self.peers.get(alias) {
            return Ok(peer.name.clone());
        }
        let place = match &self.file {
            Some(path) => path.display().to_string(),
            None => "the configuration, for there is no m2m/config.toml".into(),
        };
        Err(Failure::Configuration(format!(
            "{alias} is no id, and no alias in {place}: write `{alias} = \"ID@host:port\"` below [peers] there; \
             a host's name needs its port here: {alias}:9527"
        )))
    }
}

impl Settings {
    /// The device key that a peer has to prove: the flag's, or its alias's.
    pub(crate) fn pin(&self, name: &PeerName) -> Option<[u8; 32]> {
        let of_alias = || match name {
            PeerName::Alias(alias) => self.peers.get(alias)?.pin,
            _ => None,
        };
        self.pin.or_else(of_alias)
    }
}

/// Where a key comes from: never from the command line, which other users can see.
#[derive(Clone)]
pub(crate) enum KeySource {
    File(PathBuf),
    Variable { name: &'static str, text: Zeroizing<String> },
}

impl KeySource {
    /// Reads the key, and warns of what looks unsafe about it.
    pub(crate) fn read(&self) -> Result<KeyFile, Failure> {
        match self {
            KeySource::File(path) => {
                let (key, warnings) = KeyFile::read(path)?;
                warnings.iter().for_each(|warning| output::warn(&format!("m2m: {warning}")));
                Ok(key)
            }
            KeySource::Variable { name, text } => {
                let wrong = |error| Failure::Configuration(format!("{name}: {error}"));
                let key = KeyFile::parse(text).map_err(wrong)?;
                if key.is_printable() {
                    output::warn(&format!("m2m: {name}: {}", KeyWarning::Printable(None)));
                }
                Ok(key)
            }
        }
    }
}

/// What the environment says of a key.
enum KeyVariable {
    Hex(Zeroizing<String>),
    Path(String),
}

/// The environment, as a function so that tests need not change their own.
struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    /// A variable's value; an empty one counts as not set.
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    /// A key's variable, or the one that names its file.
    fn key(&self, name: &str) -> Result<Option<KeyVariable>, Failure> {
        let text = self.text(name).map(Zeroizing::new);
        match (text, self.text(&format!("{name}_FILE"))) {
            (Some(_), Some(_)) => {
                Err(Failure::Configuration(format!("{name} and {name}_FILE are both set: unset one of them")))
            }
            (Some(text), None) => Ok(Some(KeyVariable::Hex(text))),
            (None, path) => Ok(path.map(KeyVariable::Path)),
        }
    }

    fn parse<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Failure> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let wrong = |why| Failure::Configuration(format!("the variable {name} is \"{text}\": {why}"));
        parse(&text).map(Some).map_err(wrong)
    }
}

fn pick<T>(flag: Option<T>, variable: Option<T>, file: Option<T>) -> Option<T> {
    flag.or(variable).or(file)
}

/// A flag that may be repeated, if it was given at all.
fn some<T: Clone>(flag: &[T]) -> Option<Vec<T>> {
    (!flag.is_empty()).then(|| flag.to_vec())
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn key(
    flag: Option<PathBuf>,
    env: &Environment<'_>,
    name: &'static str,
    file: Option<PathBuf>,
) -> Result<Option<KeySource>, Failure> {
    if let Some(path) = flag {
        return Ok(Some(KeySource::File(path)));
    }
    match env.key(name)? {
        Some(KeyVariable::Hex(text)) => Ok(Some(KeySource::Variable { name, text })),
        Some(KeyVariable::Path(path)) => Ok(Some(KeySource::File(path.into()))),
        None => Ok(file.map(KeySource::File)),
    }
}

/// [`key`] where there may be several: a variable has commas between them.
fn keys(
    flags: Option<Vec<PathBuf>>,
    env: &Environment<'_>,
    name: &'static str,
    file: Option<Vec<PathBuf>>,
) -> Result<Vec<KeySource>, Failure> {
    let files = |paths: Vec<PathBuf>| paths.into_iter().map(KeySource::File).collect();
    if let Some(paths) = flags {
        return Ok(files(paths));
    }
    let variable = |text: &str| KeySource::Variable { name, text: Zeroizing::new(text.to_owned()) };
    match env.key(name)? {
        Some(KeyVariable::Hex(text)) => Ok(text.split(',').map(variable).collect()),
        Some(KeyVariable::Path(paths)) => {
            Ok(files(paths.split(',').map(|path| path.trim().into()).collect()))
        }
        None => Ok(files(file.unwrap_or_default())),
    }
}

pub(crate) fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    text.parse().map_err(|error: m2m::names::NameError| error.to_string())
}

fn parse_endpoints(text: &str) -> Result<Vec<Endpoint>, String> {
    text.split(',').map(|host| parse_endpoint(host.trim())).collect()
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text.trim() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("write 1 or 0".into()),
    }
}

/// The configuration file: the one that was named, which must be there, or else the user's own, which need not.
fn read_file(
    named: Option<&Path>,
    env: &Environment<'_>,
) -> Result<(Option<PathBuf>, file::Checked), Failure> {
    let named = named.map(Path::to_path_buf).or_else(|| env.path("M2M_CONFIG"));
    if let Some(path) = named {
        let checked = file::read(&path)?.ok_or_else(|| {
            let path = path.display();
            Failure::Configuration(format!("{path}: no such file. Check --config, or leave it out"))
        })?;
        return Ok((Some(path), checked));
    }
    let Some(path) = default_file(env) else { return Ok((None, file::Checked::default())) };
    match file::read(&path)? {
        Some(checked) => Ok((Some(path), checked)),
        None => Ok((None, file::Checked::default())),
    }
}

fn default_file(env: &Environment<'_>) -> Option<PathBuf> {
    // The XDG base directory specification: a relative path is invalid and must be ignored.
    let folder = |name| env.path(name).filter(|path| path.is_absolute());
    let config = folder("XDG_CONFIG_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".config")))
        .or_else(|| folder("APPDATA"))?;
    Some(config.join("m2m/config.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const FILE: &str =
        "id = \"a\"\nkey_file = \"app.key\"\ntimeout = 5\njson = true\n[peers]\nkitchen = \"2@10.0.0.7:1\"\n";

    fn id(text: &str) -> Option<Id> {
        Some(Id::from_hex(text).unwrap())
    }

    fn merge(flags: &Globals, variables: &[(&str, &str)]) -> Result<Settings, Failure> {
        Settings::merge(flags, |name| Some(variables.iter().find(|(key, _)| *key == name)?.1.to_owned()))
    }

    fn refused(flags: &Globals, variables: &[(&str, &str)]) -> String {
        let failure = merge(flags, variables).err().expect("it was taken");
        assert!(matches!(failure, Failure::Configuration(_)), "{failure:?}");
        failure.message()
    }

    fn path(source: Option<&KeySource>) -> Option<PathBuf> {
        match source? {
            KeySource::File(path) => Some(path.clone()),
            KeySource::Variable { .. } => None,
        }
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        fs::write(&config, FILE).unwrap();
        let mut flags = Globals { config: Some(config), ..Globals::default() };

        let settings = merge(&flags, &[]).unwrap();
        assert_eq!((settings.id, settings.timeout.as_secs(), settings.json), (id("a"), 5, true));
        // A relative path is the file's, not the caller's.
        assert_eq!(path(settings.key.as_ref()), Some(folder.path().join("app.key")));

        let variables =
            [("M2M_ID", "b"), ("M2M_TIMEOUT", "6"), ("M2M_KEY_FILE", "env.key"), ("M2M_JSON", "0")];
        let settings = merge(&flags, &variables).unwrap();
        assert_eq!((settings.id, settings.timeout.as_secs(), settings.json), (id("b"), 6, false));
        assert_eq!(path(settings.key.as_ref()), Some("env.key".into()));

        flags.id = id("c");
        flags.timeout = Some(0.5);
        flags.key_file = Some("flag.key".into());
        flags.json = true;
        let settings = merge(&flags, &variables).unwrap();
        assert_eq!((settings.id, settings.timeout.as_millis(), settings.json), (id("c"), 500, true));
        assert_eq!(path(settings.key.as_ref()), Some("flag.key".into()));
    }

    #[test]
    fn the_users_file_is_found_and_may_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let flags = Globals::default();
        assert_eq!(merge(&flags, &[("XDG_CONFIG_HOME", home)]).unwrap().id, None);
        assert_eq!(merge(&flags, &[]).unwrap().timeout, TIMEOUT);

        fs::create_dir_all(folder.path().join(".config/m2m")).unwrap();
        fs::write(folder.path().join(".config/m2m/config.toml"), FILE).unwrap();
        assert_eq!(merge(&flags, &[("HOME", home)]).unwrap().id, id("a"));
        let missing = refused(&flags, &[("M2M_CONFIG", "/nowhere/config.toml")]);
        assert!(missing.contains("/nowhere/config.toml: no such file"), "{missing}");
    }

    #[test]
    fn aliases_are_looked_up() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        fs::write(&config, FILE).unwrap();
        let settings = merge(&Globals { config: Some(config), ..Globals::default() }, &[]).unwrap();
        let kitchen = settings.peer(&"kitchen".parse().unwrap()).unwrap();
        assert_eq!(Ok(kitchen), "2@10.0.0.7:1".parse());
        let unknown = settings.peer(&"garage".parse().unwrap()).unwrap_err().message();
        assert!(unknown.contains("config.toml") && unknown.contains("[peers]"), "{unknown}");
        let direct: PeerName = "3".parse().unwrap();
        assert_eq!(settings.peer(&direct).unwrap(), direct);
    }

    #[test]
    fn a_broken_variable_is_named() {
        let flags = Globals::default();
        for (name, value) in
            [("M2M_ID", "xyz"), ("M2M_HOST", "1@"), ("M2M_TIMEOUT", "soon"), ("M2M_JSON", "maybe")]
        {
            let message = refused(&flags, &[(name, value)]);
            assert!(message.contains(name) && message.contains(value), "{message}");
        }
        let both = refused(&flags, &[("M2M_KEY", "00"), ("M2M_KEY_FILE", "x")]);
        assert!(both.contains("M2M_KEY_FILE"), "{both}");
    }

    #[test]
    fn keys_in_the_environment_are_never_shown() {
        let flags = Globals::default();
        let settings = merge(&flags, &[("M2M_KEY", "beefbeef")]).unwrap();
        let message = settings.need_key().err().expect("four bytes are no key").message();
        assert!(message.contains("M2M_KEY") && !message.contains("beef"), "{message}");

        let settings = merge(&flags, &[("M2M_KEY", &"5a".repeat(16))]).unwrap();
        assert_eq!(settings.need_key().unwrap().bytes(), [0x5A; 16]);
        // One key for the fleet: the host's and the peer's are this net's unless told otherwise.
        assert!(settings.hosts_and_keys().is_ok() && settings.peer_key().is_ok());
    }

    #[test]
    fn hosts_share_a_key_or_have_one_each() {
        let [a, b, c] = ["1@a.example", "8@b.example", "9@c.example"];
        let [hex_a, hex_b] = ["5a".repeat(16), "a5".repeat(16)];
        let both = format!("{a}, {b}");
        let hosts = |variables: &[(&str, &str)]| {
            let settings = merge(&Globals::default(), variables).unwrap();
            settings.hosts_and_keys().map_err(|failure| failure.message())
        };
        let named =
            |hosts: Vec<(Endpoint, Key)>| hosts.iter().map(|(host, _)| host.host.clone()).collect::<Vec<_>>();
        let keys = format!("{hex_a},{hex_b}");
        for key in [&hex_a, &keys] {
            let hosts = hosts(&[("M2M_HOST", &both), ("M2M_HOST_KEY", key)]).map(named);
            assert_eq!(hosts, Ok(vec!["a.example".to_owned(), "b.example".to_owned()]));
        }
        for (names, said) in
            [(a.to_owned(), "1 host and 2 host keys"), (format!("{both},{c}"), "3 hosts and")]
        {
            let wrong = hosts(&[("M2M_HOST", &names), ("M2M_HOST_KEY", &keys)]).err().expect("it was taken");
            assert!(wrong.contains(said) && wrong.contains("--host-key-file"), "{wrong}");
        }
        // Each key is its own host's: the second file is the one that is missing.
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("a.key");
        fs::write(&there, &hex_a).unwrap();
        let files = format!("{},{}", there.display(), folder.path().join("b.key").display());
        let wrong = hosts(&[("M2M_HOST", &both), ("M2M_HOST_KEY_FILE", &files)]).err().expect("it was taken");
        assert!(wrong.contains("b.key"), "{wrong}");
    }

    #[test]
    fn hosts_of_a_flag_replace_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        fs::write(
            &config,
            "host = [\"1@a.example\", \"8@b.example\"]\nhost_key_file = [\"a.key\", \"b.key\"]\n",
        )
        .unwrap();
        let mut flags = Globals { config: Some(config), ..Globals::default() };
        let settings = merge(&flags, &[]).unwrap();
        assert_eq!(settings.hosts, parse_endpoints("1@a.example,8@b.example").unwrap());
        let paths: Vec<_> = settings.host_keys.iter().map(|source| path(Some(source))).collect();
        assert_eq!(paths, ["a.key", "b.key"].map(|name| Some(folder.path().join(name))));
        flags.hosts = vec!["9@c.example".parse().unwrap()];
        assert_eq!(merge(&flags, &[]).unwrap().hosts, flags.hosts);
    }

    #[test]
    fn what_is_missing_is_asked_for() {
        let settings = merge(&Globals::default(), &[]).unwrap();
        assert!(settings.need_id().unwrap_err().message().contains("--id"));
        let words = |failure: Option<Failure>| failure.expect("it was there").message();
        assert!(words(settings.need_key().err()).contains("--key-file"));
        assert!(words(settings.hosts_and_keys().err()).contains("--host-key-file"));
        assert!(words(settings.peer_key().err()).contains("--peer-key-file"));
    }
}
