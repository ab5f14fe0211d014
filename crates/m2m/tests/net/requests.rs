//! Requests, data and answers in direct sessions.
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use m2m::{Code, ErrorKind, OptionNumber, Path, Peer, Reply, Request, Router};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::fixture::{builder, direct, echo, id, key, net, pair, serve, soon};

#[tokio::test]
async fn a_request_is_answered() {
    let (_a, b, session) = pair().await;
    let response = soon(session.get("/temp").into_future()).await.unwrap();
    assert_eq!((response.code, response.text()), (Code::CONTENT, Some("21.5")));
    assert_eq!(response.format(), Some(m2m::ContentFormat::TEXT));
    assert_eq!(session.peer(), id(2));
    assert_eq!(session.path(), Path::Direct(b.local_addr()));
    assert!(session.rtt().is_some());
    assert_eq!(session.get("/who").await.unwrap().text(), Some(id(1).to_string().as_str()));
}

#[tokio::test]
async fn data_comes_back() {
    let (_a, _b, session) = pair().await;
    for len in [0, 1, 700, 1000] {
        let data = vec![0xA5; len];
        assert_eq!(soon(session.send(data.clone()).into_future()).await.unwrap(), data);
    }
}

#[tokio::test]
async fn both_sides_ask() {
    let (a, b) = (net(1).await, net(2).await);
    serve(&a, Router::new().get("/name", async |_: Request| "a"));
    // B asks A back, in the session that A opened, before it answers.
    let ask_back = async |request: Request| {
        let session = request.session().expect("the session that it came in");
        let name = session.get("/name").await.map_err(|_| Code::BAD_GATEWAY)?;
        Ok::<_, Code>(format!("you are {}", name.text().unwrap_or("?")))
    };
    serve(&b, Router::new().get("/me", ask_back));
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    assert_eq!(soon(session.get("/me").into_future()).await.unwrap().text(), Some("you are a"));
    let back = b.session(id(1)).expect("A opened one");
    assert_eq!(soon(back.get("/name").into_future()).await.unwrap().text(), Some("a"));
    // Looking at a session does not own it.
    drop(back);
    assert_eq!(soon(session.get("/me").into_future()).await.unwrap().code, Code::CONTENT);
}

#[tokio::test]
async fn requests_before_the_session_is_up_are_sent_when_it_is() {
    let (a, b) = (net(1).await, net(2).await);
    serve(&b, echo());
    let session = a.dial(direct(&b, 2)).unwrap();
    let (one, two) =
        soon(async { tokio::join!(session.get("/temp").into_future(), session.send("x").into_future()) })
            .await;
    assert_eq!(one.unwrap().text(), Some("21.5"));
    assert_eq!(&two.unwrap()[..], b"x");
}

#[tokio::test]
async fn a_net_is_found_by_its_address_alone() {
    let (a, b) = (net(1).await, net(2).await);
    let session = soon(a.connect(Peer::any(b.local_addr()).key(key(2)))).await.unwrap();
    assert_eq!(session.peer(), id(2));
    let by_name = format!("localhost:{}", b.local_addr().port()).parse::<Peer>().unwrap();
    let session = soon(a.connect(by_name.key(key(2)))).await.unwrap();
    assert_eq!(session.peer(), id(2));
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let (_a, _b, session) = pair().await;
    let rows = [
        (session.get("/none"), Code::NOT_FOUND),
        (session.put("/temp"), Code::METHOD_NOT_ALLOWED),
        (session.get("/temp").option(OptionNumber::IF_NONE_MATCH, []), Code::BAD_OPTION),
        (session.get("/temp").option(OptionNumber::PROXY_SCHEME, "coap"), Code::PROXYING_NOT_SUPPORTED),
        (session.get("/temp").option(OptionNumber::ACCEPT, [60]), Code::NOT_ACCEPTABLE),
        (session.get("/temp").option(OptionNumber::ACCEPT, []), Code::CONTENT),
    ];
    for (request, code) in rows {
        assert_eq!(soon(request.into_future()).await.unwrap().code, code);
    }
    let refused = soon(session.get("/none").into_future()).await.unwrap().ok().unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (ErrorKind::Refused, Some(Code::NOT_FOUND)));
    assert!(refused.to_string().contains("GET /none"), "{refused}");
}

#[tokio::test]
async fn what_is_no_path_is_not_sent() {
    let (_a, _b, session) = pair().await;
    let error = session.get("/a/../b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    let error = session.get("/a").option(OptionNumber::ETAG, [0; 9]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
}

#[tokio::test]
async fn paths_with_a_star_stand_for_all_below() {
    let (a, b) = (net(1).await, net(2).await);
    let router = Router::new()
        .get("/files/*", async |request: Request| request.path.join("+"))
        .get("/files/special", async |_: Request| "special")
        .any("/any", async |request: Request| request.argument("x").unwrap_or("none").to_owned());
    serve(&b, router);
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    let text = async |path: &str| session.get(path).await.unwrap().text().unwrap().to_owned();
    assert_eq!(text("/files/a/b").await, "files+a+b");
    assert_eq!(text("/files/special").await, "special");
    assert_eq!(text("/any?y=1&x=2").await, "2");
    assert_eq!(session.delete("/any").await.unwrap().code, Code::DELETED);
    assert_eq!(session.get("/filesystem").await.unwrap().code, Code::NOT_FOUND);
}

#[tokio::test]
async fn a_handler_that_panics_is_answered_for() {
    let (a, b) = (net(1).await, net(2).await);
    let fail = async |_: Request| -> Reply { panic!("on purpose") };
    serve(&b, Router::new().get("/bad", fail).get("/good", async |_: Request| "fine"));
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    assert_eq!(soon(session.get("/bad").into_future()).await.unwrap().code, Code::INTERNAL_SERVER_ERROR);
    assert_eq!(soon(session.get("/good").into_future()).await.unwrap().text(), Some("fine"));
}

#[tokio::test]
async fn a_slow_handler_runs_once() {
    let (a, b) = (net(1).await, net(2).await);
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let slow = move |_: Request| {
        let counted = counted.clone();
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            // Longer than the first retransmission would wait.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            "done"
        }
    };
    serve(&b, Router::new().post("/slow", slow));
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    assert_eq!(soon(session.post("/slow").into_future()).await.unwrap().text(), Some("done"));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_timeout_is_total_wall_time() {
    let (a, b) = (net(1).await, net(2).await);
    serve(&b, Router::new().get("/never", async |_: Request| std::future::pending::<()>().await));
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    let start = Instant::now();
    let error = session.get("/never").timeout(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("GET /never"), "{error}");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn what_fits_no_packet_is_refused_at_once() {
    let (a, b) = (net(1).await, net(2).await);
    serve(&b, echo().get("/big", async |_: Request| vec![1; 5000]));
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    let error = session.send(vec![0; 5000]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("5000") || error.to_string().contains("50"), "{error}");
    let response = soon(session.get("/big").into_future()).await.unwrap();
    assert_eq!(response.code, Code::INTERNAL_SERVER_ERROR);
    assert!(response.text().is_some_and(|text| text.contains("bytes")), "{response:?}");
}

#[tokio::test]
async fn a_non_confirmable_request_is_answered() {
    let (_a, _b, session) = pair().await;
    let response = soon(session.get("/temp").non_confirmable().into_future()).await.unwrap();
    assert_eq!(response.text(), Some("21.5"));
}

#[tokio::test]
async fn requests_wait_for_a_router() {
    let (a, b) = (net(1).await, net(2).await);
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    let asked = tokio::spawn(session.get("/temp").into_future());
    tokio::time::sleep(Duration::from_millis(100)).await;
    serve(&b, echo());
    assert_eq!(soon(asked).await.unwrap().unwrap().text(), Some("21.5"));
}

#[tokio::test]
async fn handlers_are_bounded_and_so_is_what_waits_for_them() {
    let a = net(1).await;
    let b = builder(2).max_handlers(2).open().await.unwrap();
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (waits_at, counted) = (gate.clone(), running.clone());
    let slow = move |_: Request| {
        let (gate, running) = (waits_at.clone(), counted.clone());
        async move {
            running.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            "done"
        }
    };
    serve(&b, Router::new().get("/slow", slow).get("/quick", async |_: Request| "quick"));
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    let mut asked = JoinSet::new();
    (0..10).for_each(|_| drop(asked.spawn(session.get("/slow").into_future())));
    // Two run, two wait, six are refused.
    for _ in 0..6 {
        let refused = soon(asked.join_next()).await.unwrap().unwrap().unwrap();
        assert_eq!(refused.code, Code::SERVICE_UNAVAILABLE);
        assert_eq!(refused.options.get(OptionNumber::MAX_AGE), Some(&[1][..]));
    }
    assert_eq!(running.load(Ordering::SeqCst), 2);
    gate.add_permits(10);
    while let Some(answer) = soon(asked.join_next()).await {
        assert_eq!(answer.unwrap().unwrap().text(), Some("done"));
    }
    assert_eq!(running.load(Ordering::SeqCst), 4);
    assert_eq!(soon(session.get("/quick").into_future()).await.unwrap().text(), Some("quick"));
}

#[tokio::test]
async fn a_net_that_serves_nothing_says_so() {
    let (a, b) = (net(1).await, net(2).await);
    let session = soon(a.connect(direct(&b, 2))).await.unwrap();
    assert_eq!(soon(session.get("/temp").into_future()).await.unwrap().code, Code::NOT_IMPLEMENTED);
}

#[tokio::test]
async fn a_ping_measures_the_round_trip() {
    let (_a, _b, session) = pair().await;
    assert!(soon(session.ping()).await.unwrap() < Duration::from_secs(5));
}
