# find_package(@symbol@ CONFIG) with @symbol@_DIR set to this folder gives
@if source
#   @symbol@::@symbol@         a static library, compiled with the project
@else
#   @symbol@::@symbol@         the static library
@end
@if shared
#   @symbol@::@symbol@_shared  the shared library
@end
if(NOT TARGET @symbol@::@symbol@)
@if source
    add_library(@symbol@ STATIC "${CMAKE_CURRENT_LIST_DIR}/@name@.c")
    set_target_properties(@symbol@ PROPERTIES C_STANDARD 99)
    target_include_directories(@symbol@ PUBLIC "${CMAKE_CURRENT_LIST_DIR}")
    target_link_libraries(@symbol@ PUBLIC m)
    add_library(@symbol@::@symbol@ ALIAS @symbol@)
@else
    add_library(@symbol@::@symbol@ STATIC IMPORTED GLOBAL)
    set_target_properties(@symbol@::@symbol@ PROPERTIES
        IMPORTED_LOCATION "${CMAKE_CURRENT_LIST_DIR}/lib@name@.a"
        IMPORTED_LINK_INTERFACE_LANGUAGES C
        INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}")
@if shared
    find_package(Threads REQUIRED)
    set_property(TARGET @symbol@::@symbol@ PROPERTY INTERFACE_LINK_LIBRARIES Threads::Threads m)

    add_library(@symbol@::@symbol@_shared SHARED IMPORTED GLOBAL)
    set_target_properties(@symbol@::@symbol@_shared PROPERTIES
        IMPORTED_LOCATION "${CMAKE_CURRENT_LIST_DIR}/@library@"
        IMPORTED_NO_SONAME TRUE
        INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}")
@else
    set_property(TARGET @symbol@::@symbol@ PROPERTY INTERFACE_LINK_LIBRARIES m)
@end
@end
endif()
