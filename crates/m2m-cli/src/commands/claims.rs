//! `m2m server claims`: which device key each id belongs to, shown and changed while the host runs or not.
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use m2m::Id;
use m2m::state::{Claim, Claims, StateDir, StateError};
use serde_json::json;

use crate::args;
use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::nets;
use crate::output::{Output, hex, short};

pub(super) fn run(settings: &Settings, output: Output, task: &args::Claims) -> Result<Exit, Failure> {
    let folder = nets::own_folder(settings)?;
    match task {
        args::Claims::List => list(&folder, output)?,
        args::Claims::Forget { claimed } => forget(&folder, output, *claimed)?,
        args::Claims::Pin { claimed, public } => pin(&folder, output, *claimed, public)?,
    }
    Ok(Exit::Ok)
}

fn list(folder: &Path, output: Output) -> Result<(), Failure> {
    let claims = match open(folder)? {
        Some(claims) => claims.list()?,
        None => Vec::new(),
    };
    if claims.is_empty() {
        output.say(&format!("m2m: no id is claimed in {}", folder.display()));
    }
    for (id, claim) in claims {
        let Claim { public, since } = claim;
        let (device, since) = (hex(&public), date(since));
        output.line(
            &format!("{}  {device}  since {since}", short(id)),
            &json!({"id": id.to_string(), "device": device, "since": since}),
        )?;
    }
    Ok(())
}

fn forget(folder: &Path, output: Output, id: Id) -> Result<(), Failure> {
    let forgotten = match open(folder)? {
        Some(claims) => claims.forget(id)?,
        None => false,
    };
    let words = match forgotten {
        true => format!("m2m: {} is free for the next device that comes", short(id)),
        false => format!("m2m: {} was not claimed in {}", short(id), folder.display()),
    };
    output.event(&words, &json!({"event": "forgotten", "id": id.to_string(), "was_claimed": forgotten}));
    Ok(())
}

fn pin(folder: &Path, output: Output, id: Id, public: &[u8; 32]) -> Result<(), Failure> {
    match StateDir::open(folder) {
        // Made if it was missing: an id may be pinned before its host's first start.
        Ok(_) | Err(StateError::InUse { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Claims::open(&StateDir::claims_path(folder))?.pin(id, public, now)?;
    let device = hex(public);
    output.event(
        &format!("m2m: {} belongs to {device}", short(id)),
        &json!({"event": "pinned", "id": id.to_string(), "device": device}),
    );
    Ok(())
}

/// The claims of a host that may be running; nothing, and nothing is made, if there are none yet.
fn open(folder: &Path) -> Result<Option<Claims>, Failure> {
    let path = StateDir::claims_path(folder);
    match path.try_exists() {
        Ok(false) => Ok(None),
        // Whatever is the matter with the file, opening it tells.
        _ => Ok(Some(Claims::open(&path)?)),
    }
}

/// A time of the host's clock; one that no calendar has is shown as the latest that is.
fn date(unix: u64) -> String {
    // The last second of the year 9999, beyond which RFC 3339 has no form.
    const LAST: u64 = 253_402_300_799;
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix.min(LAST))).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_read_by_people() {
        assert_eq!(date(1_795_384_800), "2026-11-22T22:00:00Z");
        assert_eq!(date(u64::MAX), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn looking_makes_no_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(open(folder.path()).unwrap().is_none());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
