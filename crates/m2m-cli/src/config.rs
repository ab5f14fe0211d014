//! The settings of a run: flags before the environment before the configuration file.
//!
//! ```toml
//! id = "3"
//! key_file = "app.key"                # relative to this file's folder
//! host = "1@relay.example:9527"
//! host_key_file = "host.key"
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
    pub(crate) host: Option<Endpoint>,
    pub(crate) host_key: Option<KeySource>,
    pub(crate) peer_key: Option<KeySource>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) timeout: Duration,
    pub(crate) json: bool,
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
            host: pick(flags.host.clone(), env.parse("M2M_HOST", parse_endpoint)?, file.host),
            host_key: key(flags.host_key_file.clone(), &env, "M2M_HOST_KEY", file.host_key_file)?,
            peer_key: key(flags.peer_key_file.clone(), &env, "M2M_PEER_KEY", file.peer_key_file)?,
            state_dir: flags.state_dir.clone().or(state_dir),
            timeout: pick(flags.timeout, env.parse("M2M_TIMEOUT", parse_seconds)?, file.timeout)
                .map_or(TIMEOUT, Duration::from_secs_f64),
            json: flags.json || env.parse("M2M_JSON", parse_switch)?.or(file.json).unwrap_or(false),
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

    /// The host's key; without one of its own, this net's: one key for the fleet.
    pub(crate) fn host_key(&self) -> Result<Key, Failure> {
        self.key_or_own(self.host_key.as_ref(), "the host's key is needed: give --host-key-file FILE")
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

    fn parse<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, Failure> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let wrong = |why| Failure::Configuration(format!("the variable {name} is \"{text}\": {why}"));
        parse(&text).map(Some).map_err(wrong)
    }
}

fn pick<T>(flag: Option<T>, variable: Option<T>, file: Option<T>) -> Option<T> {
    flag.or(variable).or(file)
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
    let text = env.text(name).map(Zeroizing::new);
    match (text, env.path(&format!("{name}_FILE"))) {
        (Some(_), Some(_)) => {
            Err(Failure::Configuration(format!("{name} and {name}_FILE are both set: unset one of them")))
        }
        (Some(text), None) => Ok(Some(KeySource::Variable { name, text })),
        (None, path) => Ok(path.or(file).map(KeySource::File)),
    }
}

pub(crate) fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    text.parse().map_err(|error: m2m::names::NameError| error.to_string())
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
        assert!(settings.host_key().is_ok() && settings.peer_key().is_ok());
    }

    #[test]
    fn what_is_missing_is_asked_for() {
        let settings = merge(&Globals::default(), &[]).unwrap();
        assert!(settings.need_id().unwrap_err().message().contains("--id"));
        let words = |failure: Option<Failure>| failure.expect("it was there").message();
        assert!(words(settings.need_key().err()).contains("--key-file"));
        assert!(words(settings.host_key().err()).contains("--host-key-file"));
        assert!(words(settings.peer_key().err()).contains("--peer-key-file"));
    }
}
