use std::io::{BufReader, Read, Write};

use proptest::prelude::*;

use super::*;

fn identity() -> Identity {
    Identity::generate().unwrap()
}

fn sealed(recipients: &[Recipient], content: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new(recipients, Vec::new()).unwrap();
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

fn opened(identity: &Identity, file: &[u8]) -> Result<Vec<u8>, Error> {
    let text = identity.secret_text();
    let identities = Identity::read_all(&text)?;
    // Pieces that fit nothing.
    let mut reader = Reader::new(&identities, BufReader::with_capacity(777, file))?;
    let mut content = Vec::new();
    reader.read_to_end(&mut content)?;
    Ok(content)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
}

#[test]
fn whoever_it_is_for_opens_it_and_nobody_else() {
    let (one, two, other) = (identity(), identity(), identity());
    for len in [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000] {
        let file = sealed(&[one.recipient(), two.recipient()], &pattern(len));
        assert_eq!(opened(&one, &file).unwrap(), pattern(len), "{len} bytes");
        assert_eq!(opened(&two, &file).unwrap(), pattern(len), "{len} bytes");
        assert!(matches!(opened(&other, &file), Err(Error::NotForUs(2))));
    }
    assert!(matches!(Writer::new(&[], Vec::new()), Err(Error::Recipients(0))));
    assert!(matches!(
        Writer::new(&[one.recipient(); 65], Vec::new()),
        Err(Error::Recipients(65))
    ));
}

#[test]
fn a_file_that_was_cut_anywhere_is_refused() {
    let one = identity();
    let file = sealed(&[one.recipient()], &pattern(150_000));
    let short: Vec<usize> = (0..400).collect();
    let near = [
        65_000,
        65_536 + 200,
        131_000,
        131_400,
        file.len() - 17,
        file.len() - 16,
        file.len() - 1,
    ];
    for len in short.into_iter().chain(near).chain((0..file.len()).step_by(4099)) {
        let mut reader = match Reader::new(std::slice::from_ref(&one), &file[..len]) {
            Ok(reader) => reader,
            Err(Error::CutShort | Error::Format(_)) => continue,
            Err(error) => panic!("{len}: {error}"),
        };
        let mut content = Vec::new();
        let error = reader.read_to_end(&mut content).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{len} bytes: {error}");
        assert!(pattern(150_000).starts_with(&content));
        assert!(reader.read(&mut [0; 8]).is_err(), "{len} bytes: it stays refused");
    }
}

#[test]
fn whole_parts_that_are_missing_are_missed() {
    let one = identity();
    let file = sealed(&[one.recipient()], &pattern(3 * 65_536));
    let part = 65_536 + 16;
    let head = file.len() - 3 * part;
    let cut = opened(&one, &file[..head + 2 * part]);
    assert!(matches!(cut, Err(Error::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof));
    // The second taken out, the first two exchanged, something behind the end.
    let out = [&file[..head + part], &file[head + 2 * part..]].concat();
    let swapped = [
        &file[..head],
        &file[head + part..head + 2 * part],
        &file[head..head + part],
        &file[head + 2 * part..],
    ]
    .concat();
    let longer = [&file[..], b"x"].concat();
    for changed in [out, swapped, longer] {
        assert!(opened(&one, &changed).is_err());
    }
}

#[test]
fn what_is_no_key_is_refused_and_a_secret_is_not_shown() {
    let one = identity();
    let recipient = one.recipient().to_string();
    assert!(recipient.starts_with("age1") && recipient.parse::<Recipient>().unwrap() == one.recipient());
    let mut wrong = recipient.clone();
    let last = if wrong.pop() == Some('q') { 'p' } else { 'q' };
    wrong.push(last);
    for bad in ["", "age1", "ssh-ed25519 AAAA", &wrong, &recipient.to_uppercase()[..20]] {
        let error = bad.parse::<Recipient>().unwrap_err();
        assert!(
            matches!(&error, Error::NoRecipient { .. }) && error.to_string().contains("backup keys"),
            "{error}"
        );
    }
    let secret = one.secret_text();
    let error = secret.parse::<Recipient>().unwrap_err();
    assert!(!error.to_string().contains(&secret[16..]), "{error}");
    assert!(!format!("{one:?}").contains(&secret[16..]));
    let file = format!("# made now\n\n# public key: {recipient}\n{secret}\n");
    assert_eq!(Identity::read_all(&file).unwrap()[0].recipient(), one.recipient());
    for bad in ["", "# nothing", &recipient, &secret[..40], &secret.replace('1', "2")] {
        assert!(matches!(Identity::read_all(bad), Err(Error::NoIdentity { .. })), "{bad}");
    }
    // With this point nobody agrees on anything.
    let zero = bech32::encode::<bech32::Bech32>(bech32::Hrp::parse("age").unwrap(), &[0; 32]).unwrap();
    assert!(matches!(zero.parse::<Recipient>(), Err(Error::NoRecipient { .. })));
}

#[test]
fn what_is_no_such_file_is_named() {
    let one = identity();
    for bad in [
        &b"hello\n"[..],
        b"age-encryption.org/v2\n-> X\n",
        b"-----BEGIN AGE ENCRYPTED FILE-----\n",
        b"\xff\xfe\n",
    ] {
        assert!(matches!(opened(&one, bad), Err(Error::Format(_))));
    }
    let endless = [&b"age-encryption.org/v1\n-> "[..], &[b'x'; 100_000][..]].concat();
    assert!(matches!(opened(&one, &endless), Err(Error::Format(_))));
}

proptest! {
    #[test]
    fn every_changed_bit_is_noticed(len in 0usize..70_000, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let one = identity();
        let mut file = sealed(&[one.recipient()], &pattern(len));
        let at = at.index(file.len());
        file[at] ^= 1 << bit;
        prop_assert!(opened(&one, &file).is_err());
    }
}

/// Made by the crate `age` 0.11.
#[test]
fn files_of_another_program_are_opened() {
    let one = Identity::read_all(include_str!("tests/identity.txt")).unwrap();
    for (file, len) in [
        (&include_bytes!("tests/short.age")[..], 5),
        (&include_bytes!("tests/empty.age")[..], 0),
    ] {
        let mut content = Vec::new();
        Reader::new(&one, file).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, b"hello"[..len]);
    }
}
