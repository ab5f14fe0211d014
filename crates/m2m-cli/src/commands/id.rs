//! `m2m id`: who this net is.
use std::path::Path;

use m2m::keyfile::KeyFile;
use m2m::state::{StateDir, StateError};
use m2m_proto::session::keys::DeviceKey;
use serde_json::json;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::Settings;
use crate::exit::{Exit, Failure};
use crate::nets;
use crate::output::{self, Output};

/// Bytes of a fingerprint: 64 bits are compared by eye, not searched for.
const FINGERPRINT: usize = 8;

pub(super) fn run(settings: &Settings, output: Output) -> Result<Exit, Failure> {
    let id = settings.need_id()?;
    let folder = nets::own_folder(settings)?;
    let device = DeviceKey::from_bytes(*device_key(&folder)?);
    let device = output::hex(device.public());
    let fingerprint = fingerprint(&device);
    let shown = folder.display().to_string();
    output.line(
        &format!(
            "id           {id}\ndevice       {device}\nfingerprint  {fingerprint}\nstate        {shown}"
        ),
        &json!({"id": id.to_string(), "device": device, "fingerprint": fingerprint, "state_dir": shown}),
    )?;
    Ok(Exit::Ok)
}

/// The device's secret, made if this net has never run; read without the lock if it is running.
fn device_key(folder: &Path) -> Result<Zeroizing<[u8; 32]>, Failure> {
    let in_use = match StateDir::open(folder) {
        Ok(state) => return Ok(state.device_key()?),
        Err(error @ StateError::InUse { .. }) => error,
        Err(error) => return Err(error.into()),
    };
    let (key, _) = KeyFile::read(&folder.join("device.key")).map_err(|_| Failure::from(in_use))?;
    let mut bytes = Zeroizing::new([0; 32]);
    bytes.iter_mut().zip(key.bytes()).for_each(|(to, from)| *to = *from);
    Ok(bytes)
}

/// The start of the hash of the public key's digits, in groups that can be read out over a telephone.
fn fingerprint(public: &str) -> String {
    let hash = Sha256::digest(public.as_bytes());
    let (start, _) = hash.split_at(FINGERPRINT);
    start.chunks(2).map(output::hex).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_short_and_the_keys_own() {
        let one = fingerprint(&output::hex(&[1; 32]));
        assert_eq!(one.len(), 19);
        assert_ne!(one, fingerprint(&output::hex(&[2; 32])));
    }

    #[test]
    fn the_device_key_is_found_while_the_net_runs() {
        let folder = tempfile::tempdir().unwrap();
        let first = device_key(folder.path()).unwrap();
        let held = StateDir::open(folder.path()).unwrap();
        assert_eq!(*device_key(folder.path()).unwrap(), *first);
        drop(held);
    }
}
